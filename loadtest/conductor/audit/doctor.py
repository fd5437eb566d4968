"""`ullage doctor`: everything that can be known of client and server before a load, with time to look."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from estimator.errors import PlainError
from estimator.spec import EngineName
from loadtest.access import USERS_CAP, require_below_cap, require_consent
from loadtest.audit import Check
from loadtest.conductor.audit.idle import idle_check
from loadtest.conductor.audit.keep_alive import idle_survived, keep_alive_check
from loadtest.conductor.audit.preflight import audit_answer, audit_host, kind_of, load_plan
from loadtest.conductor.prepare import RunRequest, plan_run, served_model
from loadtest.conductor.server_facts import ServerFacts, read_server
from loadtest.origin import ApiKey, Origin, read_api_key
from loadtest.scenario import Scenario

ECHO_S: Final = 2.0
AT_REST_WITHIN_S: Final = 5.0
USERS: Final = 100
"""Where neither a number nor a scenario with a prediction says how many there will be."""
Side = Literal["client", "server"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorRequest:
    """What a person asked for. Without `origin` only this machine is looked at."""

    origin: Origin | None = None
    scenario: Scenario | None = None
    engine: EngineName | None = None
    model: str | None = None
    users: int | None = None
    processes: int = 1
    users_cap: int = USERS_CAP
    allow_public_host: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What was found on each side, and the load it was judged for."""

    users: int
    tokens_per_s: float
    client: tuple[Check, ...]
    server: tuple[Check, ...]

    @property
    def checks(self) -> tuple[Check, ...]:
        return (*self.client, *self.server)


def examine(request: DoctorRequest, say: Callable[[str], None]) -> Diagnosis:
    """Some three seconds, and eight with a server. Raises PlainError only where it may not look at all."""
    if request.origin is not None:
        require_consent(request.origin.host, allowed=request.allow_public_host)
    with ThreadPoolExecutor(1) as beside:
        idle = None
        users = request.users
        server: tuple[Check, ...] = ()
        if request.origin is not None:
            key = read_api_key(variable=request.origin.access.api_key_variable)
            say(f"asking {request.origin}")
            found, planned, server = _server(request, request.origin, key)
            users = users or planned
            if found is not None:
                idle = beside.submit(idle_survived, request.origin, key)  # seven seconds of idling
        users = users or USERS
        require_below_cap(users, request.users_cap)
        say(f"trying this machine for {users:,} users")
        load = load_plan(request.scenario, users, request.processes)
        client = audit_host(load, ECHO_S)
        if idle is not None:
            say("waiting for idle connections")
            server = (*server, keep_alive_check(idle.result()))
    return Diagnosis(users=users, tokens_per_s=load.tokens_per_s, client=client, server=server)


def _server(
    request: DoctorRequest, origin: Origin, key: ApiKey | None
) -> tuple[ServerFacts | None, int | None, tuple[Check, ...]]:
    """What the server says of itself, the users a scenario would put on it, and one answer."""
    try:
        facts = read_server(origin, key)
        engine = request.engine or (facts.reading.engine if facts.reading else None) or "vllm"
        served = served_model(origin, engine, request.model, facts)
        at_rest = idle_check(lambda: read_server(origin, key).reading, within_s=AT_REST_WITHIN_S)
    except PlainError as error:
        return None, None, (_red("server", error),)
    about = _about(facts, served.name, served.max_model_len)
    users: int | None = None
    plan: tuple[Check, ...] = ()
    if request.scenario is not None:
        users, plan = _planned(request, request.scenario, origin, key, engine)
    answer = audit_answer(origin, key, kind_of(request.scenario, served.name, engine))
    return facts, users, (about, at_rest, *plan, *answer)


def _about(facts: ServerFacts, model: str, max_model_len: int | None) -> Check:
    length = "" if max_model_len is None else f", max_model_len {max_model_len:,}"
    if facts.reading is None:
        said = f"serves {model}{length}, and shows no /metrics of an engine"
        fix = "let /metrics through: without it nothing is predicted and no wall is named"
        return Check(name="server", level="amber", said=said, fix=fix)
    version = f" {facts.version}" if facts.version else ""
    return Check(name="server", level="ok", said=f"{facts.reading.engine}{version} serves {model}{length}")


def _planned(
    request: DoctorRequest, scenario: Scenario, origin: Origin, key: ApiKey | None, engine: EngineName
) -> tuple[int | None, tuple[Check, ...]]:
    wanted = RunRequest(
        origin=origin,
        scenario=scenario,
        engine=engine,
        runs_root=Path(),  # nothing is written
        model=request.model,
        users_max=request.users,
        users_cap=request.users_cap,
        allow_public_host=request.allow_public_host,
    )
    try:
        plan = plan_run(wanted, key)
    except PlainError as error:
        return None, (_red("plan", error),)
    stages = f"{len(plan.stages)} stages, " if plan.stages else ""
    said = f"{stages}at most {plan.users_max:,} users"
    return plan.users_max, (Check(name="plan", level="ok", said=said),)


def _red(name: str, error: PlainError) -> Check:
    return Check(name=name, level="red", said=str(error), exit_code=error.exit_code)
