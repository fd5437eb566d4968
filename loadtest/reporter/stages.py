"""Cuts a run into stage windows and folds rows over them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from statistics import median
from typing import Final

import numpy as np

from loadtest.records import SUCCESSES, Event, Sample
from loadtest.reporter.observation import Series, Window
from loadtest.reporter.question import Need, Question, need_of

LOAD_REACHED_RATIO: Final = 0.97
"""Users without pauses are in flight nearly always; fewer than this and the stage was not held."""

QUEUE_REQUESTS: Final = 1.0
"""A queue whose median length reaches one request is a queue, not a moment."""


def windows(events: Sequence[Event]) -> list[Window]:
    """A stage lasts until the next one, or the end of the run; one without an end is not judged."""
    marks = [event for event in events if event.event in ("stage", "cut", "run_end")]
    settled = {event.data["index"]: event.at_ns for event in events if event.event == "settled"}
    return [
        Window(
            index=int(mark.data["index"] or 0),
            label=str(mark.data.get("label") or f"{mark.data['users']} users"),
            users=int(mark.data["users"] or 0),
            start_ns=mark.at_ns,
            settled_ns=_settled_ns(mark, settled.get(mark.data["index"]), after.at_ns),
            end_ns=after.at_ns,
            rate_per_s=_number(mark.data.get("rate_per_s")),
            has_pauses=bool(mark.data.get("has_pauses")),
        )
        for mark, after in pairwise(marks)
        if mark.event == "stage"
    ]


def _settled_ns(mark: Event, settled_ns: int | None, end_ns: int) -> int:
    """A stage that was to settle and never did is not judged."""
    settle_s = mark.data["settle_s"]
    if settle_s is not None:
        return mark.at_ns + int(float(settle_s) * 1e9)
    return end_ns if settled_ns is None else settled_ns


def _number(value: str | float | bool | None) -> float | None:
    return None if value is None else float(value)


def series(samples: Iterable[Sample], signal: str, start_ns: int) -> Series:
    """One signal over time; gaps are simply not there."""
    return tuple(
        ((sample.at_ns - start_ns) / 1e9, sample.signals[signal])
        for sample in samples
        if signal in sample.signals
    )


def in_flight_mean(window: Window) -> Question[float]:
    """Mean requests between intent and end over the window: the exact integral over time."""
    overlap_ns = 0
    need = need_of(("done_ns",), [window])
    while (rows := (yield need)) is not None:
        ends_ns = np.minimum(rows["done_ns"], window.end_ns)
        starts_ns = np.maximum(rows["intended_ns"], window.settled_ns)
        overlap_ns += int(np.maximum(ends_ns - starts_ns, 0).sum())
    return overlap_ns / max(window.end_ns - window.settled_ns, 1)


def in_flight_at(moments_ns: Sequence[int]) -> Question[list[int]]:
    """How many requests were between intent and end at each of these moments, which are in order of time."""
    if not moments_ns:
        return []
    moments = np.asarray(moments_ns, np.int64)
    begun = np.zeros(len(moments) + 1, np.int64)
    names = frozenset({"intended_ns", "done_ns"})
    need = Need(names=names, start_ns=moments_ns[0], end_ns=moments_ns[-1])
    while (rows := (yield need)) is not None:
        # counted at every moment from its intent on, and taken off again from its end on
        begun += np.bincount(np.searchsorted(moments, rows["intended_ns"]), minlength=len(begun))
        begun -= np.bincount(np.searchsorted(moments, rows["done_ns"]), minlength=len(begun))
    in_flight: list[int] = np.cumsum(begun)[:-1].tolist()
    return in_flight


def failed(outcomes: Mapping[str, int]) -> int:
    return sum(count for outcome, count in outcomes.items() if outcome not in SUCCESSES)


def load_shortfall(
    window: Window, in_flight: float, outcomes: Mapping[str, int], client: Iterable[Sample]
) -> str:
    """Why the load that was set did not reach the server; empty where it did.

    in_flight: mean over the window. client: samples of the load processes. Users who pause after a failed
    request are excused.
    """
    if failed(outcomes):
        return ""
    if window.rate_per_s is not None:
        due, unsent = _arrivals(client, window)
        if unsent > (1 - LOAD_REACHED_RATIO) * due:
            return f"{unsent:.0f} of {due:.0f} requests that were due found none of {window.users} users free"
        return ""
    if window.has_pauses:
        at_work = _users_at_work(client, window)
        if at_work is not None and at_work < LOAD_REACHED_RATIO * window.users:
            return f"only {at_work:.0f} of {window.users} users were at work"
        return ""
    if in_flight < LOAD_REACHED_RATIO * window.users:
        return f"only {in_flight:.1f} requests in flight"
    return ""


def _arrivals(client: Iterable[Sample], window: Window) -> tuple[float, float]:
    """Requests that came due in the window, and those of them that no user had taken at its end."""
    due = unsent = 0.0
    for looks in _by_process(client, window, "client_due_total"):
        first, last = looks[0].signals, looks[-1].signals
        due += last["client_due_total"] - first["client_due_total"]
        for name in ("client_unsent_total", "client_backlog"):
            unsent += last.get(name, 0.0) - first.get(name, 0.0)
    return due, max(unsent, 0.0)


def _users_at_work(client: Iterable[Sample], window: Window) -> float | None:
    looks = _by_process(client, window, "client_users")
    return sum(median(look.signals["client_users"] for look in each) for each in looks) if looks else None


def _by_process(client: Iterable[Sample], window: Window, signal: str) -> list[list[Sample]]:
    """The looks in the window at each load process, in order, where they show `signal`."""
    found: dict[str, list[Sample]] = {}
    for sample in client:
        if signal in sample.signals and window.settled_ns <= sample.at_ns < window.end_ns:
            found.setdefault(sample.target, []).append(sample)
    return list(found.values())


def queue_from(requests_per_s: float, step_s: float) -> float:
    """How many waiting requests in the median are a queue.

    A request that comes while a step runs is seen waiting until the next one begins, on any server. Only
    more than what comes within two steps (TPOT is the length of one), and at least one, waits for room.
    """
    return max(QUEUE_REQUESTS, 2 * requests_per_s * step_s)
