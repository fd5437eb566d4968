"""Between which two of the measured values a percentile lies: order statistics. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loadtest.sequential.binomial import binomial_at_least, binomial_at_most


@dataclass(frozen=True, slots=True, kw_only=True)
class PercentileInterval:
    """Two of the values, in their unit. None: too few to bound the percentile on this side."""

    low: float | None
    high: float | None


def percentile_interval(
    values: Sequence[float], percentile: float, *, confidence: float = 0.95, design_effect: float = 1.0
) -> PercentileInterval:
    """Encloses the `percentile` (0 to 100) of what `values` are drawn from with at least `confidence`.

    `values` may be in any order. A design effect above 1 makes the sample count for less.
    Source: David and Nagaraja, Order Statistics, section 7.1.
    """
    n, ordered = int(len(values) / design_effect), sorted(values)
    tail, share = (1.0 - confidence) / 2, percentile / 100
    # ranks count from 1; below the percentile lie binomial(n, share) of the values
    low = _last(0, n, lambda rank: binomial_at_most(rank - 1, n, share) <= tail)
    high = n + 1 - _last(0, n, lambda rank: binomial_at_least(n + 1 - rank, n, share) <= tail)
    stretch = len(values) / n if n else 1.0
    return PercentileInterval(
        low=ordered[max(math.floor(low * stretch), 1) - 1] if low else None,
        high=ordered[min(math.ceil(high * stretch), len(values)) - 1] if high <= n else None,
    )


def _last(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """The largest rank up to `high` for which `holds`, which it does up to some rank; `low` if for none."""
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low
