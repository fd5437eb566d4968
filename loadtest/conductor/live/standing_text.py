"""How the run stands, in words: the rows of the Capacity tab and of its two CSV files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from loadtest.audit import STEAL_AMBER
from loadtest.conductor.live.holding import evidence, faults
from loadtest.conductor.live.so_far import Level, mean_s, signals_added
from loadtest.conductor.live.standing import Standing, predicted_kv_ratio, predicted_limit
from loadtest.live_counts import LiveCounts, Timing
from loadtest.reporter.client_health import CPU_RATIO, CPU_WAIT_RATIO, GC_PAUSE_S, LOOP_LAG_S
from loadtest.reporter.lines import client, observed, of_prediction
from loadtest.reporter.plain import NOT_SEEN, one_line
from loadtest.scenario import Limits

Row = tuple[str, str, str]
"""What, the figure, what it stands on."""
METER_MARKS: Final = 10
MARKS: Final = {True: "✓", False: "✗"}
LEVEL_COLUMNS: Final = (
    "stage", "label", "users", "judged_s", "requests", "succeeded", "good", "ttft_mean_s", "tpot_mean_s",
    "e2e_mean_s", "kv_max_ratio", "preemptions", "faults",
)  # fmt: skip
VERDICT_FOLLOWS: Final = "when the load has ended, reload this page for the verdict of the rows"
TIMES: Final[tuple[tuple[Timing, str], ...]] = (("ttft", "TTFT"), ("tpot", "TPOT"), ("e2e", "End to end"))


def capacity_rows(standing: Standing) -> list[Row]:
    """One row before the first run. While a run goes on, how it stands; then its verdict."""
    if standing.run is None:
        return [("Verdict so far", "no run yet", "start one: its prediction and its levels appear here")]
    standing.look()
    now = _judged(standing) if standing.verdict is not None else _going_on(standing)
    rows = [*now, *_levels(standing), _requests(standing), _run(standing)]
    return [(what, one_line(figure), one_line(why)) for what, figure, why in rows]


def level_rows(standing: Standing) -> Iterator[tuple[object, ...]]:
    """One a level, by LEVEL_COLUMNS; what was not seen is empty."""
    if standing.run is None:
        return
    standing.look()
    for level in standing.levels:
        stage, counts = level.stage, level.counts
        yield (
            stage.index,
            one_line(stage.label),
            stage.users,
            round(level.judged_s, 3),
            counts.judged,
            counts.succeeded,
            counts.good,
            *(mean_s(counts, timing) for timing, _ in TIMES),
            level.kv_max_ratio,
            level.preemptions,
            "; ".join(faults(level, _limits(standing))),
        )


def _judged(standing: Standing) -> Iterator[Row]:
    """The report's figures, made of the rows."""
    verdict = standing.verdict
    assert verdict is not None
    is_signed = verdict.status == "PASS"
    yield "Verdict", f"{MARKS[is_signed]} {verdict.status}", verdict.reason
    limits = {"KV cache": verdict.n_kv, "slots": verdict.n_slots, "SLO": verdict.n_slo, "held": verdict.n_max}
    smallest = ", ".join(f"{name} {limit}" for name, limit in limits.items() if limit is not None)
    number = f"{verdict.n_safe} parallel requests" if is_signed else "not signed"
    yield "Safe limit", number, f"{verdict.buffer_ratio:.0%} below the smallest of: {smallest}"
    yield from _forecast(standing)
    yield "Observed", f"{verdict.n_max} parallel requests", observed(verdict.observation)
    yield "Load generator", _mark(verdict.observation.client.faults), client(verdict.observation.client)


def _going_on(standing: Standing) -> Iterator[Row]:
    yield _verdict_so_far(standing)
    yield from _forecast(standing)
    yield from _load(standing)
    yield from _server(standing)
    yield from _latencies(standing)
    yield _generator(standing)


def _verdict_so_far(standing: Standing) -> Row:
    """Do the levels so far hold?"""
    limits = _limits(standing)
    broken = min((one for one in standing.levels if faults(one, limits)), key=_users, default=None)
    if broken is not None:
        why = f"wall so far: {'; '.join(faults(broken, limits))}"
        return ("Verdict so far", f"{MARKS[False]} {_users(broken)} users are too many", why)
    held = [one for one in standing.levels if one.is_settled]
    if not held:
        return ("Verdict so far", "none yet", "no level has settled")
    assert standing.run is not None
    ends = "what drifts is told by its report" if standing.run.run.manifest.is_soak else VERDICT_FOLLOWS
    why = f"no wall so far; {ends}"
    return ("Verdict so far", f"{MARKS[True]} {max(map(_users, held))} users hold", why)


def _forecast(standing: Standing) -> Iterator[Row]:
    prediction = standing.prediction
    figure = "nothing" if prediction is None else f"{predicted_limit(prediction)} parallel requests"
    yield "Predicted", figure, of_prediction(prediction)


def _load(standing: Standing) -> Iterator[Row]:
    stage, workers = standing.stage, standing.workers()
    assert standing.run is not None
    if stage is None or not standing.levels:
        yield "Level now", "no load", "the load has not begun, or has ended and is judged"
    else:
        level = standing.levels[-1]
        state = f"judged for {level.judged_s:.0f} s" if level.is_settled else "settling"
        planned = len(standing.run.stages)
        place = f"stage {stage.index + 1} of {planned}" if planned else f"level {stage.index + 1}"
        yield "Level now", f"{stage.users} users", f"{place}, {stage.label}, {state}"
    in_flight = signals_added(workers, "client_in_flight")
    backlog, unsent = (signals_added(workers, f"client_{name}") for name in ("backlog", "unsent_total"))
    waits = "" if backlog is None else f"; {backlog:.0f} due and not sent yet, {unsent or 0:.0f} never sent"
    processes = f"{len(workers)} load process{'es' if len(workers) != 1 else ''}{waits}"
    yield "In flight", NOT_SEEN if in_flight is None else f"{in_flight:.0f} requests", processes


def _requests(standing: Standing) -> Row:
    counts = standing.counts()
    ended = [f"{count} {outcome}" for outcome, count in counts.outcomes.most_common()]
    return "Requests", f"{counts.outcomes.total()} ended", ", ".join(ended) or "none has ended"


def _server(standing: Standing) -> Iterator[Row]:
    seen, vain = standing.seen, standing.looks_in_vain
    missed = f"; {vain} looks at /metrics failed" if vain else ""
    if seen is None:
        yield "Server", NOT_SEEN, f"its /metrics has shown nothing so far{missed}"
        return
    counts = [f"{seen.signals[name]:.0f} {name}" for name in ("running", "waiting") if name in seen.signals]
    preemptions = [level.preemptions for level in standing.levels if level.preemptions is not None]
    total = f"{sum(preemptions):.0f} preemptions in this run" if preemptions else "preemptions not shown"
    yield "Server", ", ".join(counts) or NOT_SEEN, f"{total}{missed}"
    usage, prediction, stage = seen.signals.get("kv_usage_ratio"), standing.prediction, standing.stage
    foretold = "no prediction for this level"
    if prediction is not None and stage is not None:
        foretold = f"{predicted_kv_ratio(prediction, stage.users):.0%} predicted for {stage.users} users"
    yield "KV cache", NOT_SEEN if usage is None else meter(usage), foretold


def meter(ratio: float) -> str:
    """A share as a bar of text and a number."""
    full = round(min(max(ratio, 0.0), 1.0) * METER_MARKS)
    return f"{'■' * full}{'□' * (METER_MARKS - full)} {ratio:.0%}"


def _latencies(standing: Standing) -> Iterator[Row]:
    """Of the level at hand; of the last one when the load has ended."""
    if not standing.levels:
        return
    limits, counts = _limits(standing), standing.levels[-1].counts
    for timing, name in TIMES:
        mean = mean_s(counts, timing)
        if mean is not None:
            yield name, f"{mean * 1000:,.0f} ms mean", _within(counts, timing, limits)


def _within(counts: LiveCounts, timing: Timing, limits: Limits) -> str:
    limit_s = {"ttft": limits.ttft_s, "tpot": limits.tpot_s, "e2e": limits.e2e_s}[timing]
    spread = counts.spreads[timing]
    if limit_s is None:
        return f"no limit set; {spread.count} requests of this level"
    share = spread.at_most(limit_s) / spread.count
    return f"{share:.1%} of {spread.count} within {limit_s:g} s, {limits.percentile:g}% wanted"


def _generator(standing: Standing) -> Row:
    seen = [signals for signals in standing.workers().values() if "client_cpu_ratio" in signals]
    if not seen:
        return "Load generator", NOT_SEEN, "no sample of a load process yet"
    cpu = max(signals["client_cpu_ratio"] for signals in seen)
    lag_s = max(signals["client_loop_lag_max_s"] for signals in seen)
    gc_s = max(signals["client_gc_pause_max_s"] for signals in seen)
    why = (
        f"busiest process {cpu:.0%} of a core, slowest loop {lag_s * 1000:.0f} ms late, "
        f"longest garbage collection {gc_s * 1000:.0f} ms"
    )
    if (stolen := max(signals.get("client_steal_ratio", 0.0) for signals in seen)) > STEAL_AMBER:
        why += f", hypervisor took {stolen:.0%} of the machine"
    if (waited := max(signals.get("client_cpu_wait_ratio", 0.0) for signals in seen)) > CPU_WAIT_RATIO:
        why += f", without a processor {waited:.0%} of the time"
    return "Load generator", _mark(cpu > CPU_RATIO or lag_s > LOOP_LAG_S or gc_s > GC_PAUSE_S), why


def _mark(faults: object) -> str:
    return f"{MARKS[not faults]} {'busy' if faults else 'fit'}"


def _levels(standing: Standing) -> Iterator[Row]:
    limits = _limits(standing)
    for level in standing.levels:
        found = faults(level, limits)
        state = f"{MARKS[not found]} {'breaks' if found else 'holds'}"
        if not found and not level.is_settled:
            state = "settling"
        yield f"Stage {level.stage.index + 1}: {_users(level)} users", state, evidence(level)


def _run(standing: Standing) -> Row:
    assert standing.run is not None
    manifest, folder = standing.run.run.manifest, standing.run.run.folder
    served = f"{manifest.model} on {manifest.engine} at {manifest.host}"
    return "Run", manifest.run_id, f"{served}; rows in {folder.root}"


def _limits(standing: Standing) -> Limits:
    assert standing.run is not None
    return standing.run.run.scenario.limits


def _users(level: Level) -> int:
    return level.stage.users
