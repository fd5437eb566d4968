"""The audit before every load: is this machine fit, and does one streaming answer look as it should?

Under three seconds beside the server's own time for one short answer.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from estimator.errors import PlainError
from estimator.spec import EngineName
from loadtest.audit import Check
from loadtest.conductor.audit.echo import try_reader
from loadtest.conductor.audit.host_audit import TOKENS_PER_S, LoadPlan, echo_check, host_checks
from loadtest.conductor.audit.host_facts import read_host
from loadtest.conductor.audit.idle import idle_check
from loadtest.conductor.audit.sanity import TRIES, Kind, is_worth_another_try, sanity_checks, sanity_plan
from loadtest.conductor.audit.sanity_facts import SanityFacts, SanityPlan, ask_once
from loadtest.conductor.local_tokenizer import LocalTokenizer
from loadtest.conductor.prepare import PlannedRun
from loadtest.conductor.server_facts import read_server
from loadtest.conductor.stolen_time import StolenTime
from loadtest.conductor.tokenizer import Counting, Tokenizer
from loadtest.origin import ApiKey, Origin
from loadtest.scenario import Scenario

PREFLIGHT_ECHO_S: Final = 0.5
PAUSE_S: Final = 0.2


def audit_before_load(plan: PlannedRun, key: ApiKey | None) -> tuple[Check, ...]:
    """The fast part of `ullage doctor`, with what is already known of the server."""
    request = plan.request
    load = load_plan(request.scenario, plan.users_max, request.processes)
    checks = audit_host(load, PREFLIGHT_ECHO_S)
    return (
        *checks,
        idle_check(lambda: read_server(request.origin, key).reading),  # before our own question
        *audit_answer(request.origin, key, kind_of(request.scenario, plan.served.name, request.engine)),
    )


def kind_of(scenario: Scenario | None, model: str, engine: EngineName) -> Kind:
    """The scenario's requests, or those that fit every server of that engine."""
    if scenario is None:
        return Kind(model=model, engine=engine, endpoint="chat" if engine == "lmdeploy" else "completions")
    return Kind(
        model=model,
        engine=engine,
        endpoint=scenario.endpoint,
        ignore_eos=scenario.ignores_eos,
        extra_body=scenario.extra_body,
        extra_headers=scenario.extra_headers,
        tokenizer=scenario.tokenizer,
    )


def load_plan(scenario: Scenario | None, users: int, processes: int) -> LoadPlan:
    """What the streams ask of the reader; how fast a loaded server really is, is what the load will show."""
    plan = LoadPlan(users=users, processes=processes)
    if scenario is None:
        return plan
    tpot_s = scenario.limits.tpot_s
    speed = TOKENS_PER_S if tpot_s is None else max(TOKENS_PER_S, 1 / tpot_s)
    return replace(plan, tokens_per_s=speed, answer_tokens=scenario.workload.output_tokens.at(0.5))


def audit_host(
    load: LoadPlan, echo_s: float, stolen_ratio: Callable[[], float | None] | None = None
) -> tuple[Check, ...]:
    """Time stolen is counted over the echo trial too, while this machine works as it will under the load.

    Linux counts it in hundredths of a second, and a core that halts is given back late: asleep for a fifth
    of a second, a machine showed 17% where the load after it missed 2%.
    """
    stolen_ratio = stolen_ratio or StolenTime().ratio
    facts = read_host()
    echo = try_reader(echo_s)
    facts = replace(facts, steal_ratio=stolen_ratio())
    return (*host_checks(facts, load), echo_check(echo, facts, load))


def audit_answer(origin: Origin, key: ApiKey | None, kind: Kind) -> tuple[Check, ...]:
    """One short streaming answer; up to TRIES where the server turned it away for the moment."""
    run_id = secrets.token_hex(4)  # another prompt each time, so no cache answers
    counting: Counting = Tokenizer(origin=origin, key=key, model=kind.model, engine=kind.engine)
    if kind.tokenizer is not None:
        counting = LocalTokenizer(path=kind.tokenizer, model=kind.model, engine=kind.engine)
    try:
        plan = sanity_plan(kind, run_id, counting.counter())
    except PlainError:  # a server without a tokenizer page; whether that is a fault is known later
        plan = sanity_plan(kind, run_id, None)
    return sanity_checks(_asked(origin, key, plan), plan, origin)


def _asked(origin: Origin, key: ApiKey | None, plan: SanityPlan) -> SanityFacts:
    facts = ask_once(origin, key, plan)
    for _ in range(TRIES - 1):
        if not is_worth_another_try(facts):
            break
        time.sleep(PAUSE_S)
        facts = ask_once(origin, key, plan)
    return facts
