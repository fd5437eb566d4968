"""What a good request is, and how many of a simulated level's requests were good."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from estimator.twin.virtual import RequestOutcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What a good request is: `percentile` of requests keep every limit that is set, seconds."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None
    percentile: float = 95.0

    @property
    def limits_s(self) -> dict[str, float]:
        named = {"ttft_s": self.ttft_s, "tpot_s": self.tpot_s, "e2e_s": self.e2e_s}
        return {name: limit for name, limit in named.items() if limit is not None}


def judged(requests: Sequence[RequestOutcome], goal: Goal, factor: float) -> tuple[float, tuple[str, ...]]:
    """Share of requests within all limits, and the limits broken most when that is too few.

    factor: how many times as long everything takes.
    """
    allowed = round(1 - goal.percentile / 100, 9) * len(requests)
    limits_s = goal.limits_s
    over = {
        name: [factor * TOOK[name](request) > limit_s for request in requests]
        for name, limit_s in limits_s.items()
    }
    bad = sum(any(flags) for flags in zip(*over.values(), strict=True)) if over else 0
    if bad <= allowed:
        return 1 - bad / len(requests), ()
    most = max(sum(flags) for flags in over.values())
    broken = tuple(name for name, flags in over.items() if sum(flags) > allowed or sum(flags) == most)
    return 1 - bad / len(requests), broken


def e2e_s(request: RequestOutcome) -> float:
    """From its arrival to its last token, seconds."""
    return request.finish_s - request.arrival_s


TOOK: Final[Mapping[str, Callable[[RequestOutcome], float]]] = {
    "ttft_s": lambda request: request.ttft_s,
    "tpot_s": lambda request: request.tpot_s,
    "e2e_s": e2e_s,
}
"""Limit of a goal -> what it is held against."""
