"""Verdict -> the five lines a person reads first. Sentences only; the figures were made before."""

from __future__ import annotations

from estimator.capacity import KvPool, Prediction
from loadtest.reporter.observation import ClientHealth, Observation
from loadtest.reporter.plain import one_line
from loadtest.reporter.searched import bracket_text
from loadtest.reporter.verdict import Verdict
from loadtest.reporter.waterfall_text import explain_gap


def five_lines(verdict: Verdict, report_path: str) -> list[str]:
    """Predicted, Observed, Gap, Client, SIGN-OFF: label in 12 columns, text of any server made inert."""
    pairs = (
        ("Predicted", predicted(verdict)),
        ("Observed", observed(verdict.observation)),
        ("Gap", gap(verdict)),
        ("Client", client(verdict.observation.client)),
        ("SIGN-OFF", signed(verdict, report_path)),
    )
    return [f"{label:<12}{one_line(text)}" for label, text in pairs]


def predicted(verdict: Verdict) -> str:
    return of_prediction(verdict.prediction)


def of_prediction(prediction: Prediction | None) -> str:
    if prediction is None:
        return "nothing: the server shows no KV cache, and no model and GPU were named"
    pool, held = prediction.pool, prediction.held
    slots = "" if prediction.n_slots is None else f" · {prediction.n_slots} slots"
    return (
        f"{prediction.n_guaranteed} guaranteed · {prediction.n_saturation:.1f} at saturation{slots}   "
        f"({_engines(pool)}{_blocks(pool)} blocks of {pool.block_size_tokens} tokens; "
        f"a request holds {held.start_blocks} to {held.longest_blocks})"
    )


def _engines(pool: KvPool) -> str:
    return f"{pool.engines} engines, loaded alike: each " if pool.engines > 1 else ""


def _blocks(pool: KvPool) -> str:
    smallest, largest = (
        pool.usable_blocks,
        max(pool.engine_blocks, default=pool.blocks) - pool.reserved_blocks,
    )
    return f"{smallest:,}" if smallest == largest else f"{smallest:,} to {largest:,}"


def observed(observation: Observation) -> str:
    broken = observation.first_broken
    if observation.search is not None:
        return bracket_text(observation, observation.search)
    if not observation.stages:
        return "nothing: no stage lasted beyond its settling time"
    held = f"{observation.n_max} held" if observation.n_max else "no stage held"
    if broken is None:
        wall = "no wall:" if observation.wall.name == "none" else f"wall: {observation.wall.name};"
        return f"{held}   ({wall} {observation.wall.evidence})"
    verb = "preempts" if broken.preemptions else "does not hold"
    odd = "" if observation.is_monotone else "; a higher stage held again"
    return (
        f"{held} · {broken.users} {verb}   (wall: {observation.wall.name}; {observation.wall.evidence}{odd})"
    )


def gap(verdict: Verdict) -> str:
    if verdict.gap_ratio is None:
        return "not known without a prediction"
    at_least = "at least " if verdict.is_lower_bound else ""
    return f"{at_least}{verdict.gap_ratio:+.0%}   {explain_gap(verdict)}".rstrip()


def client(health: ClientHealth) -> str:
    lateness = (
        "send lateness not seen"
        if health.send_lateness_p99_s is None
        else f"send lateness p99 {health.send_lateness_p99_s * 1000:.0f} ms"
    )
    if health.parked_ratio is None:
        agrees = "the server showed no counts to compare with"
    elif abs(health.parked_ratio) <= 0.05:
        agrees = "in-flight agrees with the server"
    elif health.parked_ratio < 0:
        agrees = f"the server counts {-health.parked_ratio:.0%} more in flight than we sent"
    else:
        agrees = f"{health.parked_ratio:.0%} of in-flight requests are not counted by the server"
    state = "clean" if not health.faults else f"NOT CLEAN: {'; '.join(health.faults)}"
    return f"{state} ({lateness}; {agrees})"


def signed(verdict: Verdict, report_path: str) -> str:
    number = f"{verdict.n_safe} parallel requests ({verdict.buffer_ratio:.0%} buffer)"
    if verdict.status in ("VOID", "FAIL"):
        number = "no number"
    why = "" if verdict.status == "PASS" else f"   {verdict.reason}"
    return f"{number}    {verdict.status}    {report_path}{why}"
