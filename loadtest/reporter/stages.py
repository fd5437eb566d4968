"""Cuts a run into stage windows and folds rows over them. Pure."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Final

from loadtest.records import SUCCESSES, Event, RequestRecord, Sample
from loadtest.reporter.observation import Series, Window
from loadtest.scenario import Limits

LOAD_REACHED_RATIO: Final = 0.97
"""Users without pauses are in flight nearly always; fewer than this and the stage was not held."""

QUEUE_REQUESTS: Final = 1.0
"""A queue whose median length reaches one request is a queue, not a moment."""


def windows(events: Sequence[Event]) -> list[Window]:
    """A stage lasts until the next one, or the end of the run; one without an end is not judged."""
    marks = [event for event in events if event.event in ("stage", "run_end")]
    return [
        Window(
            index=int(mark.data["index"] or 0),
            label=str(mark.data.get("label") or f"{mark.data['users']} users"),
            users=int(mark.data["users"] or 0),
            start_ns=mark.at_ns,
            settled_ns=mark.at_ns + int(float(mark.data["settle_s"] or 0) * 1e9),
            end_ns=after.at_ns,
        )
        for mark, after in pairwise(marks)
        if mark.event == "stage"
    ]


def series(samples: Iterable[Sample], signal: str, start_ns: int) -> Series:
    """One signal over time; gaps are simply not there."""
    return tuple(
        ((sample.at_ns - start_ns) / 1e9, sample.signals[signal])
        for sample in samples
        if signal in sample.signals
    )


def in_flight_mean(requests: Iterable[RequestRecord], window: Window) -> float:
    """Mean requests between intent and end over the window: the exact integral over time."""
    overlap_ns = sum(
        max(0, min(request.done_ns, window.end_ns) - max(request.intended_ns, window.settled_ns))
        for request in requests
    )
    return overlap_ns / max(window.end_ns - window.settled_ns, 1)


def quantile(ordered: Sequence[float], share: float) -> float:
    """Nearest rank: the smallest value that `share` of all values do not exceed."""
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]


def in_flight_counter(requests: Sequence[RequestRecord]) -> Callable[[int], int]:
    """A function that says how many requests were between intent and end at a moment, nanoseconds."""
    starts = sorted(request.intended_ns for request in requests)
    ends = sorted(request.done_ns for request in requests)
    return lambda at_ns: bisect_right(starts, at_ns) - bisect_right(ends, at_ns)


def allowed_ratio(limits: Limits) -> float:
    """Share of requests that may violate: 0.05 for p95. Rounded, or 1 - 0.9 would refuse one in ten."""
    return round(1 - limits.percentile / 100, 9)


def failed(outcomes: Mapping[str, int]) -> int:
    return sum(count for outcome, count in outcomes.items() if outcome not in SUCCESSES)


def load_reached(users: int, in_flight: float, outcomes: Mapping[str, int]) -> bool:
    """Did the users that were set load the server? One who pauses after a failure is excused."""
    return in_flight >= LOAD_REACHED_RATIO * users or failed(outcomes) > 0


def queue_from(requests_per_s: float, step_s: float) -> float:
    """How many waiting requests in the median are a queue.

    A request that comes while a step runs is seen waiting until the next one begins, on any server. Only
    more than what comes within two steps (TPOT is the length of one), and at least one, waits for room.
    """
    return max(QUEUE_REQUESTS, 2 * requests_per_s * step_s)
