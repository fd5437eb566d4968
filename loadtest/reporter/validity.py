"""May these rows be judged at all? Finds a server that died or restarted, and counts that disagree. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from loadtest.records import RequestRecord, Sample

LOOKS_IN_VAIN: Final = 3
"""This many unanswered looks at the end, with no request answered meanwhile, are a dead server."""
UNREACHABLE: Final[frozenset[str]] = frozenset(
    {"connect_refused", "connect_timeout", "reset_fresh", "reset_reused", "reset_midstream", "dns"}
)
COUNTS_DIFFER_RATIO: Final = 0.02
COUNTS_DIFFER_MIN: Final = 5
"""Requests that end between a look at the server and the client's own note of it."""


def server_death(requests: Sequence[RequestRecord], engine: Sequence[Sample]) -> str | None:
    """One sentence when the server died or restarted during the run."""
    starts = [
        s.signals["process_start_time_seconds"] for s in engine if "process_start_time_seconds" in s.signals
    ]
    if any(later != earlier for earlier, later in pairwise(starts)):
        return "the server restarted during the run"
    answered_ns = max((r.done_ns for r in requests if r.succeeded), default=0)
    seen_ns = max((s.at_ns for s in engine if s.signals), default=None)
    if seen_ns is not None:
        in_vain = [s for s in engine if s.at_ns > max(seen_ns, answered_ns)]
        if len(in_vain) >= LOOKS_IN_VAIN:
            return f"the server stopped answering during the run ({in_vain[-1].gap})"
    after = [r for r in requests if r.done_ns > answered_ns and r.outcome != "client_cancel"]
    if answered_ns and len(after) >= LOOKS_IN_VAIN and all(r.outcome in UNREACHABLE for r in after):
        return f"the server stopped answering during the run: the last {len(after)} requests did not reach it"
    return None


def counts_disagree(requests: Sequence[RequestRecord], engine: Sequence[Sample]) -> str | None:
    """One sentence when the server finished clearly more or fewer requests than this client had answered."""
    looks = [s for s in engine if "requests_finished_total" in s.signals]
    if len(looks) < 2:
        return None
    first, last = looks[0], looks[-1]
    finished = last.signals["requests_finished_total"] - first.signals["requests_finished_total"]
    ended = [r for r in requests if first.at_ns < r.done_ns <= last.at_ns]
    answered = sum(r.succeeded for r in ended)
    slack = max(COUNTS_DIFFER_MIN, COUNTS_DIFFER_RATIO * len(ended))
    if finished > len(ended) + slack:
        return f"the server finished {finished:.0f} requests, {len(ended)} of them ours: it serves others too"
    if finished < answered - slack:
        return (
            f"the server finished {finished:.0f} requests where {answered} were answered: /metrics shows "
            "another server, or one of several"
        )
    return None
