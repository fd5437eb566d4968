"""Does a level hold so far? The report's rules, on what can be counted while the load runs. Pure.

Only rows are judged: this is what a person sees meanwhile.
"""

from __future__ import annotations

from statistics import median_low
from typing import Final

from loadtest.conductor.live.so_far import Level, mean_s
from loadtest.reporter.stages import failed, queue_from
from loadtest.scenario import Limits
from loadtest.violations import failure_fault, preemption_fault

REQUESTS_MIN: Final = 20
"""Of fewer, no share is called broken: one slow request would be more than p95 allows."""


def faults(level: Level, limits: Limits) -> list[str]:
    """Why this level does not hold; empty while it does. Sentences of the report."""
    counts, found = level.counts, []
    if fault := preemption_fault(level.preemptions or 0.0, counts.judged, limits):
        found.append(fault)
    step_s = mean_s(counts, "tpot") or 0.0
    per_s = counts.succeeded / level.judged_s if level.judged_s else 0.0
    if level.waiting and (waiting := median_low(level.waiting)) >= queue_from(per_s, step_s):
        found.append(f"a queue: {waiting:.0f} requests waiting in the median")
    bad, lost = counts.judged - counts.good, failed(counts.outcomes) - counts.outcomes["client_cancel"]
    if counts.judged >= REQUESTS_MIN:
        if bad > limits.violations_max_ratio * counts.judged:
            share = counts.good / counts.judged
            found.append(f"only {share:.1%} of requests within the limits, {limits.percentile:g}% wanted")
        if fault := failure_fault(lost, counts.judged, limits):
            found.append(fault)
    return found


def evidence(level: Level) -> str:
    """What stands behind it, in one line."""
    parts = [f"{level.counts.judged} requests"]
    if level.counts.judged:
        parts.append(f"{level.counts.good / level.counts.judged:.1%} good")
    if level.kv_max_ratio is not None:
        parts.append(f"KV cache up to {level.kv_max_ratio:.0%}")
    if level.waiting:
        parts.append(f"{median_low(level.waiting):.0f} waiting in the median")
    if level.preemptions is not None:
        parts.append(f"{level.preemptions:.0f} preemptions")
    return ", ".join(parts)
