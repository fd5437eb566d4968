"""Rows -> Observation: what each stage showed, the highest that held, and the wall behind it. Pure.

A stage's window is [start + settle, end]; its cohort are the requests that started in the window, waited for
to their end. Preemptions count over the whole stage: one while it settles is one too many.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import fmean, median_low
from typing import Any, Final

from estimator.errors import EXIT_USAGE
from loadtest.records import Sample
from loadtest.reporter.audit_text import access_doubts
from loadtest.reporter.cache_audit import cache_doubts, cache_notes
from loadtest.reporter.client_health import client_health
from loadtest.reporter.cohort import outcomes_of
from loadtest.reporter.far import clock_notes, far_fault
from loadtest.reporter.innocence import (
    client_wall,
    client_wall_of_search,
    counting,
    halted,
    parked_fault,
    with_client,
)
from loadtest.reporter.level import Level, look_at_level
from loadtest.reporter.looks import looks_in, looks_of_level
from loadtest.reporter.observation import Observation, StageObservation, Wall, Window
from loadtest.reporter.outlasted import NONE_STARTED, is_outlasted, outlasted_notes
from loadtest.reporter.question import answer, together
from loadtest.reporter.run_parts import looks_at, looks_of_parts, part_notes
from loadtest.reporter.searched import doubts_of_levels, faults_of_level, level_that_broke
from loadtest.reporter.stages import failed, load_shortfall, queue_from, series, windows
from loadtest.reporter.token_audit import (
    TokenAudit,
    audit_tokens,
    token_doubts_of_levels,
    token_notes,
    usage_lies,
)
from loadtest.reporter.turns import SENTENCE, takes_turns
from loadtest.reporter.validity import broken_off, counts_disagree, server_death
from loadtest.reporter.walls import name_wall
from loadtest.results import RunRows
from loadtest.run_folder import Manifest
from loadtest.scenario import Limits, parse_scenario
from loadtest.search_result import SearchResult
from loadtest.violations import failure_fault, preemption_fault

LOOKS_IN_VAIN_RATIO: Final = 0.10
"""Where more looks at the server than this failed, nobody knows whether requests waited."""


def observe(
    rows: RunRows, manifest: Manifest, slots: int | None, found: SearchResult | None = None
) -> Observation:
    """Everything a verdict needs, from rows alone. `slots` is max_num_seqs where it is known.

    `found`: the load was a search, and this is what it says of its levels.
    """
    scenario = parse_scenario(dict(manifest.scenario))
    limits = scenario.limits
    engine = [sample for sample in rows.samples if sample.source == "engine"]
    parts = looks_of_parts(engine, rows.events)
    cut = windows(rows.events)
    start_ns = cut[0].start_ns if cut else 0
    judged = [window for window in cut if window.window_s > 0 and window.users > 0]
    seen = looks_of_parts(rows.samples, rows.events)
    looks = {window.index: looks_of_level(looks_at(window, seen), window) for window in judged}
    levels = {w.index: answer(rows.requests, look_at_level(w, looks[w.index], limits)) for w in judged}
    every = tuple(_stage(w, levels[w.index], looks[w.index], limits, found) for w in judged)
    stages = tuple(stage for stage in every if not is_outlasted(stage))
    by_users = sorted(stages, key=lambda stage: stage.users)
    broken, n_max = _limit(by_users) if found is None else (level_that_broke(stages, found), found.n_max)
    gave_up = broken_off(rows.events)
    death = next(filter(None, (server_death(rows.requests, looks) for looks in parts)), None)
    of_run = answer(rows.requests, together(audit=audit_tokens(cut), client=client_health(rows.samples, cut)))
    audit: TokenAudit = of_run["audit"]
    below = [s for s in by_users if broken is None or s.users < broken.users]
    invalid: str | None
    # where nothing broke, the highest level is the one in which it happened
    earlier = below[:-1] if broken is None else below
    if gave_up is not None:
        invalid = gave_up[0] if gave_up[1] == EXIT_USAGE else f"{gave_up[0]}; {_last_good(earlier)}"
    elif death is not None:
        invalid = f"{death}; {_last_good(earlier)}"
    else:
        in_turn = SENTENCE if any(map(takes_turns, parts)) else None
        disagree = next(filter(None, (counts_disagree(rows.requests, looks) for looks in parts)), None)
        invalid = far_fault(rows.events) or in_turn or disagree or usage_lies(audit)
    spoiled = client_wall(by_users, n_max, broken) if found is None else client_wall_of_search(stages, found)
    wall = (None if gave_up or death else halted(stages, n_max)) or (
        Wall(name="invalid", evidence=invalid)
        if invalid
        else with_client(name_wall(stages, broken, slots), spoiled)
    )
    which = {stage.index for stage in counting(stages) if stage.users <= n_max}
    held = [window for window in judged if window.index in which]
    return Observation(
        stages=stages,
        n_max=n_max,
        n_slo=_n_slo(counting(by_users), limits) if found is None else n_max,
        first_broken=broken,
        is_monotone=_is_monotone(counting(by_users)) if found is None else found.is_monotone,
        wall=wall,
        server_died=death is not None,
        given_up_with=gave_up[1] if gave_up else None,
        client=of_run["client"],
        unknowns=(
            *access_doubts(manifest),
            *(
                _unknowns([stage for stage in counting(stages) if stage.users <= n_max])
                if found is None
                else doubts_of_levels(counting(stages), limits)
            ),
            *_slots_doubt(stages, slots),
            *token_doubts_of_levels([(w.label, levels[w.index].audit) for w in held], scenario),
            *cache_doubts(scenario, engine, held),
            *(doubt for window in held if (doubt := levels[window.index].pace_doubt) is not None),
        ),
        percentile=limits.percentile,
        limits=limits,
        requests=len(rows.requests),
        outcomes=outcomes_of(rows.requests),
        damaged_lines=rows.damage.bad_lines + rows.damage.torn_tails,
        kv_usage=series(engine, "kv_usage_ratio", start_ns),
        running=series(engine, "running", start_ns),
        waiting=series(engine, "waiting", start_ns),
        start_ns=start_ns,
        windows=tuple(cut),
        search=found,
        notes=(
            *part_notes(manifest),
            *outlasted_notes(every),
            *token_notes(audit),
            *cache_notes(scenario, engine, held),
            *clock_notes(rows.events),
        ),
    )


def _limit(by_users: Sequence[StageObservation]) -> tuple[StageObservation | None, int]:
    """The first level that broke and the highest that held below it, of those that count.

    Where none of those broke, one above them that broke and does not count: something ended there.
    """
    broken = next((stage for stage in counting(by_users) if not stage.held), None)
    below = [s for s in counting(by_users) if s.held and (broken is None or s.users < broken.users)]
    n_max = max((stage.users for stage in below), default=0)
    if broken is None:
        broken = next((stage for stage in by_users if not stage.held and stage.users > n_max), None)
    return broken, n_max


def _is_monotone(by_users: Sequence[StageObservation]) -> bool:
    return all(not later.held for earlier, later in pairwise(by_users) if not earlier.held)


def _last_good(held: Sequence[StageObservation]) -> str:
    """Of the levels before the one in which the server died."""
    users = max((stage.users for stage in held if not failed(stage.outcomes)), default=0)
    return f"the last level that held is {users} users" if users else "no level had held before"


def _stage(
    window: Window,
    level: Level,
    samples: Sequence[Sample],
    limits: Limits,
    found: SearchResult | None,
) -> StageObservation:
    cohort = level.cohort
    engine = [sample for sample in samples if sample.source == "engine"]
    running = _values(engine, "running", window)
    waiting = _values(engine, "waiting", window)
    usage = _values(engine, "kv_usage_ratio", window)
    looks = looks_in(engine, [window])
    in_flight = cohort.in_flight_mean
    client = [sample for sample in samples if sample.source == "client"]
    facts: dict[str, Any] = {
        "users": window.users if window.fixes_concurrency else round(in_flight),
        "shortfall": load_shortfall(window, in_flight, cohort.outcomes, client),
        "queue_from": queue_from(cohort.requests_per_s, cohort.tpot.p50_s if cohort.tpot else 0.0),
        "in_flight_mean": in_flight,
        "preemptions": _preemptions(engine, window),
        "preempted_in_window": _preemptions(engine, replace(window, start_ns=window.settled_ns)),
        "client": level.client,
        "requests_per_s": cohort.requests_per_s,
        "waiting_median": median_low(waiting) if waiting else None,
        "outcomes": cohort.outcomes,
        "requests": len(cohort.violations),
        "slo_violations": cohort.slo_violations,
        "violations": cohort.violations,
    }
    return StageObservation(
        index=window.index,
        label=window.label,
        users_set=window.users,
        rate_per_s=window.rate_per_s,
        window_s=window.window_s,
        running_mean=fmean(running) if running else None,
        running_max=max(running, default=None),
        waiting_mean=fmean(waiting) if waiting else None,
        kv_usage_mean_ratio=fmean(usage) if usage else None,
        kv_usage_max_ratio=max(usage, default=None),
        looks=len(looks),
        looks_in_vain=sum(sample.gap is not None for sample in looks),
        cancelled=cohort.cancelled,
        ttft=cohort.ttft,
        tpot=cohort.tpot,
        e2e=cohort.e2e,
        output_tokens_per_s=cohort.output_tokens_per_s,
        little_ratio=cohort.little_ratio,
        faults=_faults(facts, limits) if found is None else faults_of_level(found, window.index),
        **level.signs,
        **facts,
    )


def _faults(facts: Mapping[str, Any], limits: Limits) -> tuple[str, ...]:
    faults: list[str] = []
    waiting, requests = facts["waiting_median"], facts["requests"]
    bad, lost = sum(facts["violations"]), failed(facts["outcomes"])
    # where some are allowed, their rate is that of the requests that are judged
    allows_some = limits.preemptions_max_per_100_requests is not None
    preempted = facts["preempted_in_window" if allows_some else "preemptions"] or 0.0
    faults += filter(None, [preemption_fault(preempted, requests, limits)])
    if waiting is not None and waiting >= facts["queue_from"]:
        faults.append(f"a queue: {waiting:.0f} requests waiting in the median")
    if bad > limits.violations_max_ratio * requests:
        share = 1 - bad / requests
        faults.append(f"only {share:.1%} of requests within the limits, {limits.percentile:g}% wanted")
    parked = parked_fault(facts["client"], facts["in_flight_mean"], facts["requests_per_s"])
    faults += filter(None, [failure_fault(lost, requests, limits), parked])
    if not requests:
        faults.append(NONE_STARTED)
    elif facts["shortfall"]:
        faults.append(facts["shortfall"])
    return tuple(faults)


def _n_slo(by_users: Sequence[StageObservation], limits: Limits) -> int | None:
    """The highest stage up to which every stage met the latency limits."""
    if limits.ttft_s is None and limits.tpot_s is None and limits.e2e_s is None:
        return None
    n_slo = 0
    for stage in by_users:
        if not stage.requests or stage.slo_violations > limits.violations_max_ratio * stage.requests:
            break
        n_slo = stage.users
    return n_slo


def _unknowns(stages: Sequence[StageObservation]) -> tuple[str, ...]:
    """What would have to be known before "it held" can be said of these stages."""
    missing = []
    if any(stage.preemptions is None for stage in stages):
        missing.append("whether requests were preempted (the server shows no preemption counter)")
    if any(stage.waiting_median is None for stage in stages):
        missing.append("whether requests waited (the server's /metrics could not be read)")
    for stage in stages:
        if stage.waiting_median is not None and stage.looks_in_vain > LOOKS_IN_VAIN_RATIO * stage.looks:
            looks = f"{stage.looks_in_vain} of {stage.looks} looks at /metrics failed"
            missing.append(f"whether requests waited at {stage.users} users ({looks})")
    return tuple(missing)


def _slots_doubt(stages: Sequence[StageObservation], slots: int | None) -> tuple[str, ...]:
    """What was given as max_num_seqs may be another limit: LMDeploy's of requests, which bounds no stream."""
    ran = max((stage.running_max for stage in stages if stage.running_max is not None), default=0.0)
    if slots is None or ran <= slots:
        return ()
    return (f"what max_num_seqs is ({slots} was given, and {ran:.0f} requests ran at once)",)


def _values(engine: Sequence[Sample], signal: str, window: Window) -> list[float]:
    return [sample.signals[signal] for sample in looks_in(engine, [window]) if signal in sample.signals]


def _preemptions(engine: Sequence[Sample], window: Window) -> float | None:
    """Rise of the counter from the last look before the stage to the last look in it; after a reset it
    counts from zero.
    """
    points = [(s.at_ns, s.signals["preemptions_total"]) for s in engine if "preemptions_total" in s.signals]
    inside = [value for at_ns, value in points if window.start_ns <= at_ns < window.end_ns]
    before = [value for at_ns, value in points if at_ns < window.start_ns][-1:]
    if not inside:
        return None
    return sum(
        later - earlier if later >= earlier else later for earlier, later in pairwise([*before, *inside])
    )
