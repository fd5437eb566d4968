"""Does a series drift? Its slope without outliers' sway, and how surely it is not chance. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist, median


@dataclass(frozen=True, slots=True, kw_only=True)
class Slope:
    """Change of y for each unit of x and the interval that encloses it; `at_zero` is the y at x = 0."""

    slope: float
    low: float
    high: float
    at_zero: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrendTest:
    """`score`: pairs that rise less pairs that fall; `p_value`: how often chance alone comes as far."""

    score: int
    variance: float
    p_value: float


def theil_sen(x: Sequence[float], y: Sequence[float], *, confidence: float = 0.95) -> Slope:
    """The median of the slopes between all pairs of points; ValueError without two different x.

    Takes time and memory of the square of the length: some hundred points. Source: Sen (1968), Estimates of
    the regression coefficient based on Kendall's tau.
    """
    slopes = sorted(
        (y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in combinations(zip(x, y, strict=True), 2) if x1 != x2
    )
    if not slopes:
        raise ValueError("a slope needs two points that differ in x")
    z = NormalDist().inv_cdf((1.0 + confidence) / 2)
    spread = z * math.sqrt(max(_score_variance(x) - _tied_pairs(y), 0.0))
    slope = median(slopes)
    return Slope(
        slope=slope,
        low=slopes[max(round((len(slopes) - spread) / 2) - 1, 0)],
        high=slopes[min(round((len(slopes) + spread) / 2), len(slopes) - 1)],
        at_zero=median(y) - slope * median(x),
    )


def mann_kendall(values: Sequence[float]) -> TrendTest:
    """Two-sided test of values in order of time, corrected for ties and for continuity.

    Neighbours that resemble each other make it see drift where there is none: give it medians of blocks
    longer than the resemblance. Source: Kendall (1975), Rank correlation methods.
    """
    score = sum((later > earlier) - (later < earlier) for earlier, later in combinations(values, 2))
    variance = _score_variance(values)
    z = max(abs(score) - 1, 0) / math.sqrt(variance) if variance else 0.0
    return TrendTest(score=score, variance=variance, p_value=math.erfc(z / math.sqrt(2)))


def _score_variance(values: Sequence[float]) -> float:
    """Of the score of a series without drift, less what its ties take away."""
    n = len(values)
    return n * (n - 1) * (2 * n + 5) / 18 - _tied_pairs(values)


def _tied_pairs(values: Sequence[float]) -> float:
    """What ties take from the variance of the score."""
    return sum(count * (count - 1) * (2 * count + 5) for count in Counter(values).values()) / 18
