"""Does a request, or a level, keep the limits? The rules of the report, wherever they are asked. Pure."""

from __future__ import annotations

from loadtest.records import RequestRecord
from loadtest.scenario import Limits


def violates(record: RequestRecord, limits: Limits) -> bool | None:
    """It broke a limit or did not succeed; None: cut short before it broke one. As the report judges it."""
    was_cut_short = record.outcome == "client_cancel"
    first_s, e2e_s = record.ttft_s, record.e2e_s
    if was_cut_short and first_s is None:
        first_s = e2e_s
    for s, limit_s in ((first_s, limits.ttft_s), (record.tpot_s, limits.tpot_s), (e2e_s, limits.e2e_s)):
        if s is not None and limit_s is not None and s > limit_s:
            return True
    return None if was_cut_short else not record.succeeded


def preemption_fault(preemptions: float, requests: int, limits: Limits) -> str:
    """Why a level of so many requests does not hold for its preemptions; empty where it does."""
    most = limits.preemptions_max_per_100_requests
    if most is None:
        return f"{preemptions:.0f} preemptions" if preemptions else ""
    if 100 * preemptions <= most * requests:
        return ""
    in_100 = 100 * preemptions / max(requests, 1)
    return f"{in_100:.3g} preemptions in 100 requests, at most {most:g} allowed"


def failure_fault(failed: int, requests: int, limits: Limits) -> str:
    """Why a level does not hold for its failed requests; empty where they are within the error budget."""
    return f"{failed} of {requests} requests failed" if failed > limits.failures_max_ratio * requests else ""
