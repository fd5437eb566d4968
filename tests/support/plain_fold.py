"""The fold of a report said plainly: one list of records, one comprehension a figure, everything in memory.

What loadtest.reporter computes from columns, part by part, must be equal to this to the last bit.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from loadtest.records import RequestRecord, Sample
from loadtest.reporter.observation import Quantiles, Window
from loadtest.reporter.validity import COUNTS_DIFFER_MIN, COUNTS_DIFFER_RATIO, LOOKS_IN_VAIN, UNREACHABLE
from loadtest.scenario import Limits


def breaks_a_limit(request: RequestRecord, limits: Limits) -> bool:
    cut_short = request.outcome == "client_cancel"
    if not request.succeeded and not cut_short:
        return False
    ttft_s = request.e2e_s if cut_short and request.ttft_s is None else request.ttft_s
    pairs = ((ttft_s, limits.ttft_s), (request.tpot_s, limits.tpot_s), (request.e2e_s, limits.e2e_s))
    return any(took is not None and limit is not None and took > limit for took, limit in pairs)


@dataclass(frozen=True, kw_only=True)
class PlainFold:
    requests: Sequence[RequestRecord]
    samples: Sequence[Sample]
    limits: Limits

    def stage(self, window: Window) -> dict[str, Any]:
        """The figures of a StageObservation that requests alone decide, by its own names."""
        started = [r for r in self.requests if window.settled_ns <= r.intended_ns < window.end_ns]
        cohort = [r for r in started if r.outcome != "client_cancel" or breaks_a_limit(r, self.limits)]
        good = [r for r in cohort if r.succeeded]
        done = [r for r in self.requests if r.succeeded and window.settled_ns <= r.done_ns < window.end_ns]
        in_flight = self.in_flight_mean(window)
        tpot = quantiles([r.tpot_s for r in good])
        slo = [breaks_a_limit(r, self.limits) for r in cohort]
        return {
            "in_flight_mean": in_flight,
            "requests": len(cohort),
            "cancelled": len(started) - len(cohort),
            "outcomes": dict(Counter(r.outcome for r in cohort)),
            "violations": bytes(broke or not r.succeeded for broke, r in zip(slo, cohort, strict=True)),
            "slo_violations": sum(slo),
            "ttft": quantiles([r.ttft_s for r in good]),
            "tpot": tpot,
            "e2e": quantiles([r.e2e_s for r in good]),
            "queue_from": max(1.0, 2 * (len(done) / window.window_s) * (tpot.p50_s if tpot else 0.0)),
            "requests_per_s": len(done) / window.window_s,
            "output_tokens_per_s": sum(r.output_tokens or 0 for r in done) / window.window_s,
            "little_ratio": len(done)
            / window.window_s
            * (sum(r.done_ns - r.intended_ns for r in done) / len(done) / 1e9)
            / in_flight
            if done and in_flight
            else None,
        }

    def in_flight_mean(self, window: Window) -> float:
        overlap_ns = sum(
            max(0, min(r.done_ns, window.end_ns) - max(r.intended_ns, window.settled_ns))
            for r in self.requests
        )
        return overlap_ns / max(window.end_ns - window.settled_ns, 1)

    def send_lateness_p99_s(self, windows: Sequence[Window]) -> float | None:
        started = [r for w in windows for r in self.requests if w.settled_ns <= r.intended_ns < w.end_ns]
        late = sorted(lateness for r in started if (lateness := r.send_lateness_s) is not None)
        return quantile(late, 0.99) if late else None

    def parked_ratio(self, windows: Sequence[Window]) -> float | None:
        starts = sorted(r.intended_ns for r in self.requests)
        ends = sorted(r.done_ns for r in self.requests)
        shares = []
        for sample in self.samples:
            if "running" not in sample.signals or "waiting" not in sample.signals:
                continue
            if not any(window.settled_ns <= sample.at_ns < window.end_ns for window in windows):
                continue
            in_flight = bisect_right(starts, sample.at_ns) - bisect_right(ends, sample.at_ns)
            if in_flight:
                counted = sample.signals["running"] + sample.signals["waiting"]
                shares.append((in_flight - counted) / in_flight)
        return median(shares) if shares else None

    def server_death(self, engine: Sequence[Sample]) -> str | None:
        """Without restarts."""
        answered_ns = max((r.done_ns for r in self.requests if r.succeeded), default=0)
        seen_ns = max((s.at_ns for s in engine if s.signals), default=None)
        if seen_ns is not None:
            in_vain = [s for s in engine if s.at_ns > max(seen_ns, answered_ns)]
            if len(in_vain) >= LOOKS_IN_VAIN:
                return f"the server stopped answering during the run ({in_vain[-1].gap})"
        after = [r for r in self.requests if r.done_ns > answered_ns and r.outcome != "client_cancel"]
        if answered_ns and len(after) >= LOOKS_IN_VAIN and all(r.outcome in UNREACHABLE for r in after):
            return (
                f"the server stopped answering during the run: the last {len(after)} requests "
                "did not reach it"
            )
        return None

    def counts_disagree(self, first: Sample, last: Sample) -> bool:
        rise = last.signals["requests_finished_total"] - first.signals["requests_finished_total"]
        ended = [r for r in self.requests if first.at_ns < r.done_ns <= last.at_ns]
        slack = max(COUNTS_DIFFER_MIN, COUNTS_DIFFER_RATIO * len(ended))
        return rise > len(ended) + slack or rise < sum(r.succeeded for r in ended) - slack


def quantile(ordered: Sequence[float], share: float) -> float:
    """Nearest rank: the smallest value that `share` of all values do not exceed."""
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]


def quantiles(values: Sequence[float | None]) -> Quantiles | None:
    known = sorted(value for value in values if value is not None)
    if not known:
        return None
    return Quantiles(p50_s=quantile(known, 0.50), p95_s=quantile(known, 0.95), p99_s=quantile(known, 0.99))
