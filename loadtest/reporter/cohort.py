"""The requests of one stage, folded part by part: who violated, how long they took, how many ended. Pure."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from loadtest.columns import NULL, Columns
from loadtest.reporter.latency import (
    NEEDED,
    Latencies,
    breaks_a_limit,
    e2e_s,
    exact_quantiles,
    succeeded,
    tpot_s,
    ttft_s,
)
from loadtest.reporter.observation import Quantiles, Window
from loadtest.reporter.stages import in_flight_mean
from loadtest.request_table import RequestTable
from loadtest.scenario import Limits

SHARES: Final = (0.50, 0.95, 0.99)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cohort:
    """What a stage's requests showed. The cohort are those that started in the window.

    `in_flight_mean`, the two rates and `little_ratio` are of all requests alive or ended in the window.
    """

    violations: bytes
    slo_violations: int
    cancelled: int
    outcomes: Mapping[str, int]
    ttft: Quantiles | None
    tpot: Quantiles | None
    e2e: Quantiles | None
    in_flight_mean: float
    requests_per_s: float
    output_tokens_per_s: float
    little_ratio: float | None


def judge_cohort(requests: RequestTable, window: Window, limits: Limits) -> Cohort:
    """Folds the rows of one window. A request we cut short is not judged, unless it had broken a limit."""
    violations: list[bytes] = []
    slo_violations = cancelled = 0
    outcomes: Counter[str] = Counter()
    for rows in requests.started_in_order(NEEDED, window.settled_ns, window.end_ns):
        broke = breaks_a_limit(rows, limits)
        judged = broke | ~rows.among("outcome", {"client_cancel"})
        violations.append((broke | ~succeeded(rows))[judged].tobytes())
        slo_violations += int(broke.sum())
        cancelled += rows.rows - int(judged.sum())
        outcomes.update(_counted(rows.take(judged)))
    latencies = _latencies(requests, window)
    in_flight = in_flight_mean(requests, window)
    done, tokens, spent_s = _ended(requests, window)
    return Cohort(
        violations=b"".join(violations),
        slo_violations=slo_violations,
        cancelled=cancelled,
        outcomes=dict(outcomes),
        ttft=latencies["ttft"],
        tpot=latencies["tpot"],
        e2e=latencies["e2e"],
        in_flight_mean=in_flight,
        requests_per_s=done / window.window_s,
        output_tokens_per_s=tokens / window.window_s,
        # throughput x mean time / mean in flight: 1 when the instrument's own figures agree
        little_ratio=done / window.window_s * (spent_s / done) / in_flight if done and in_flight else None,
    )


def outcomes_of(requests: RequestTable) -> dict[str, int]:
    """How many requests ended in which way."""
    outcomes: Counter[str] = Counter()
    for rows in requests.columns("outcome"):
        outcomes.update(_counted(rows))
    return dict(outcomes)


def _counted(rows: Columns) -> dict[str, int]:
    return {str(outcome): count for outcome, count in rows.word_counts("outcome").items()}


def _latencies(requests: RequestTable, window: Window) -> dict[str, Quantiles | None]:
    """Of the good requests that started in the window."""

    def parts() -> Latencies:
        for rows in requests.started_in(NEEDED, window.settled_ns, window.end_ns):
            good = rows.take(succeeded(rows))
            yield {"ttft": ttft_s(good), "tpot": tpot_s(good), "e2e": e2e_s(good)}

    found = exact_quantiles(parts, SHARES)
    return {name: _quantiles(found.get(name)) for name in ("ttft", "tpot", "e2e")}


def _quantiles(values: tuple[float, ...] | None) -> Quantiles | None:
    return Quantiles(p50_s=values[0], p95_s=values[1], p99_s=values[2]) if values else None


def _ended(requests: RequestTable, window: Window) -> tuple[int, int, float]:
    """Of the good requests that ended in the window: how many, their output tokens, the sum of their time."""
    done = tokens = 0

    def times() -> Iterator[list[float]]:
        nonlocal done, tokens
        names = ("outcome", "intended_ns", "done_ns", "output_tokens")
        for rows in requests.alive_in(names, window.settled_ns, window.end_ns):
            in_window = (window.settled_ns <= rows["done_ns"]) & (rows["done_ns"] < window.end_ns)
            ended = rows.take(in_window & succeeded(rows))
            done += ended.rows
            tokens += int(np.where(ended["output_tokens"] == NULL, 0, ended["output_tokens"]).sum())
            yield e2e_s(ended).tolist()

    spent_s = math.fsum(itertools.chain.from_iterable(times()))
    return done, tokens, spent_s
