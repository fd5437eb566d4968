"""May these rows be judged at all? Finds a server that died or restarted, and counts that disagree. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import numpy as np

from loadtest.columns import Ints
from loadtest.records import Event, Sample
from loadtest.reporter.latency import succeeded
from loadtest.reporter.turns import takes_turns
from loadtest.request_table import RequestTable

LOOKS_IN_VAIN: Final = 3
"""This many unanswered looks at the end, with no request answered meanwhile, are a dead server."""
UNREACHABLE: Final[frozenset[str]] = frozenset(
    {"connect_refused", "connect_timeout", "reset_fresh", "reset_reused", "reset_midstream", "dns"}
)
COUNTS_DIFFER_RATIO: Final = 0.02
COUNTS_DIFFER_MIN: Final = 5
"""Requests that end between a look at the server and the client's own note of it."""
NOTED_LATE_NS: Final = 500_000_000
"""Users that started together end together: so long after a look their ends may still be noted."""


def server_death(requests: RequestTable, engine: Sequence[Sample]) -> str | None:
    """One sentence when the server died or restarted during the run."""
    starts = [
        s.signals["process_start_time_seconds"] for s in engine if "process_start_time_seconds" in s.signals
    ]
    began_again = any(later != earlier for earlier, later in pairwise(starts)) or _a_counter_fell(engine)
    if began_again and not takes_turns(engine):
        return "the server restarted during the run: its counters began again"
    answered_ns = _answered_ns(requests)
    seen_ns = max((s.at_ns for s in engine if s.signals), default=None)
    if seen_ns is not None:
        in_vain = [s for s in engine if s.at_ns > max(seen_ns, answered_ns)]
        if len(in_vain) >= LOOKS_IN_VAIN:
            return f"the server stopped answering during the run ({in_vain[-1].gap})"
    after = _ended_after(requests, answered_ns)
    if answered_ns and after.total() >= LOOKS_IN_VAIN and after.keys() <= UNREACHABLE:
        return (
            f"the server stopped answering during the run: the last {after.total()} requests did not reach it"
        )
    return None


def _a_counter_fell(engine: Sequence[Sample]) -> bool:
    """Counters only rise; several engines behind one page are added up, so one of them is enough."""
    last: dict[str, float] = {}
    for sample in engine:
        for name, value in sample.signals.items():
            if name.endswith("_total"):
                if value < last.get(name, 0.0):
                    return True
                last[name] = value
    return False


def broken_off(events: Sequence[Event]) -> tuple[str, int] | None:
    """Why the load was given up before its plan was over, and the exit code of that; None if it was not."""
    for event in events:
        if event.event == "fault" and "exit_code" in event.data:
            return str(event.data["reason"]), int(event.data["exit_code"] or 0)
    return None


def _answered_ns(requests: RequestTable) -> int:
    """When the last request ended that succeeded; 0 without one."""
    latest = 0
    for part in sorted(requests.parts, key=lambda part: part.done_last_ns, reverse=True):
        if part.done_last_ns <= latest:
            break
        rows = part.read(("outcome", "done_ns"))
        latest = max(latest, int(np.max(rows["done_ns"], initial=0, where=succeeded(rows))))
    return latest


def _ended_after(requests: RequestTable, at_ns: int) -> Counter[str | None]:
    """Outcomes of what ended later, those apart that we cut short."""
    outcomes: Counter[str | None] = Counter()
    for part in requests.parts:
        if part.done_last_ns > at_ns:
            rows = part.read(("outcome", "done_ns"))
            outcomes.update(rows.take(rows["done_ns"] > at_ns).word_counts("outcome"))
    del outcomes["client_cancel"]
    return outcomes


def counts_disagree(requests: RequestTable, engine: Sequence[Sample]) -> str | None:
    """One sentence when the server finished clearly more or fewer requests than this client had answered."""
    looks = [s for s in engine if "requests_finished_total" in s.signals]
    if len(looks) < 2:
        return None
    first, last = looks[0], looks[-1]
    finished = last.signals["requests_finished_total"] - first.signals["requests_finished_total"]
    ended = answered = late_first = late_last = 0
    for rows in requests.columns("outcome", "done_ns"):
        between = (first.at_ns < rows["done_ns"]) & (rows["done_ns"] <= last.at_ns)
        ended += int(between.sum())
        answered += int((between & succeeded(rows)).sum())
        late_first += _ended_soon_after(rows["done_ns"], first.at_ns)
        late_last += _ended_soon_after(rows["done_ns"], last.at_ns)
    slack = max(COUNTS_DIFFER_MIN, COUNTS_DIFFER_RATIO * ended)
    if finished > ended + max(slack, late_last):
        return f"the server finished {finished:.0f} requests, {ended} of them ours: it serves others too"
    if finished < answered - max(slack, late_first):
        return (
            f"the server finished {finished:.0f} requests where {answered} were answered: /metrics shows "
            "another server, or one of several"
        )
    return None


def _ended_soon_after(done_ns: Ints, at_ns: int) -> int:
    return int(((at_ns < done_ns) & (done_ns <= at_ns + NOTED_LATE_NS)).sum())
