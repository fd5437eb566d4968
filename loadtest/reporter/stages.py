"""Cuts a run into stage windows and folds rows over them. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

from loadtest.records import Event, RequestRecord, Sample
from loadtest.reporter.observation import Series, Window


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
