"""Does one process answer /metrics, or several in turn, each with counts of its own? Pure.

A server that restarts begins its counters again once; processes behind one port alternate: what fell is back
at once, or a process that had gone by its start time answers again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Final

from loadtest.records import Sample

BACK_WITHIN_LOOKS: Final = 10
FALLS_MIN: Final = 2
"""One fall may be a restart under so much load that the counter is back soon."""
COUNTER: Final = "generation_tokens_total"
SENTENCE: Final = (
    "several processes answer /metrics in turn, each with counts of its own: name every one of them with "
    "--metrics-url, or let them share PROMETHEUS_MULTIPROC_DIR"
)


def takes_turns(looks: Sequence[Sample]) -> bool:
    """Looks at one server in order of time."""
    starts = [name for name, _ in groupby(_values(looks, "process_start_time_seconds"))]
    return len(starts) > len(set(starts)) or _alternates([*_values(looks, COUNTER)])


def _values(looks: Iterable[Sample], signal: str) -> Iterable[float]:
    return (look.signals[signal] for look in looks if signal in look.signals)


def _alternates(totals: Sequence[float]) -> bool:
    """Often enough the counter fell, and was soon as high again as it had been before."""
    falls = 0
    for at in range(1, len(totals)):
        if totals[at] < totals[at - 1]:
            falls += max(totals[at : at + BACK_WITHIN_LOOKS]) >= totals[at - 1]
    return falls >= FALLS_MIN
