"""The looks of a time, found by halving: a run of days has many, and each level asks for its own. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from operator import attrgetter

from loadtest.records import Sample
from loadtest.reporter.observation import Window
from loadtest.reporter.question import Span

AT = attrgetter("at_ns")


def looks_in(samples: Sequence[Sample], spans: Iterable[Span]) -> list[Sample]:
    """Those within each span, from its settled part on; samples are in order of time."""
    return [look for span in spans for look in looks_between(samples, span.settled_ns, span.end_ns)]


def looks_between(samples: Sequence[Sample], start_ns: int, end_ns: int) -> Sequence[Sample]:
    """Those in [start, end)."""
    first = bisect_left(samples, start_ns, key=AT)
    return samples[first : bisect_left(samples, end_ns, lo=first, key=AT)]


def looks_of_level(samples: Sequence[Sample], window: Window) -> list[Sample]:
    """Those of the whole level, and the one before it from which its preemptions are counted."""
    first = bisect_left(samples, window.start_ns, key=AT)
    earlier = (samples[at] for at in range(first - 1, -1, -1))
    before = next((s for s in earlier if s.source == "engine" and "preemptions_total" in s.signals), None)
    looks = list(looks_between(samples, window.start_ns, window.end_ns))
    return looks if before is None else [before, *looks]
