"""Exact binomial tails and the bounds that follow from them. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

NEGLIGIBLE: Final = 1e-18
"""A term this much smaller than the sum so far ends the sum: what follows cannot change its last digit."""
BISECTIONS: Final = 60
"""Halvings of [0, 1]: the bound is then known to the last digit of a float near 1."""


def binomial_at_most(k: int, n: int, p: float) -> float:
    """P(X <= k) for X binomial(n, p), summed exactly in logarithms."""
    if k >= n or (p <= 0.0 and k >= 0):
        return 1.0
    if k < 0 or p >= 1.0:
        return 0.0
    return min(1.0, math.fsum(_terms(range(k, -1, -1), n, p)))


def binomial_at_least(k: int, n: int, p: float) -> float:
    """P(X >= k) for X binomial(n, p)."""
    if k <= 0 or (p >= 1.0 and k <= n):
        return 1.0
    if k > n or p <= 0.0:
        return 0.0
    return min(1.0, math.fsum(_terms(range(k, n + 1), n, p)))


def _terms(counts: range, n: int, p: float) -> Iterator[float]:
    """P(X = i) for each i, as far as it matters: past the mode terms shrink ever faster."""
    total, mode = 0.0, n * p
    for i in counts:
        term = math.exp(_log_pmf(i, n, p))
        total += term
        yield term
        if (i - mode) * counts.step > 0 and term <= total * NEGLIGIBLE:
            return


def _log_pmf(i: int, n: int, p: float) -> float:
    ways = math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1)
    return ways + i * math.log(p) + (n - i) * math.log1p(-p)


def upper_bound(k: int, n: int, *, confidence: float) -> float:
    """The largest share that k violations in n requests leave possible at `confidence`, never too low.

    Source: Clopper and Pearson (1934), one-sided: the p for which P(X <= k) = 1 - confidence.
    """
    if k >= n:
        return 1.0
    low, high = k / n, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if binomial_at_most(k, n, middle) > 1.0 - confidence:
            low = middle
        else:
            high = middle
    return high


def lower_bound(k: int, n: int, *, confidence: float) -> float:
    """The smallest share that k violations in n requests leave possible at `confidence`, never too high."""
    return 1.0 - upper_bound(n - k, n, confidence=confidence)


def requests_needed(k: int, *, q: float, confidence: float) -> int:
    """The smallest n for which k violations still prove "at most q": 59 for p95 and 0, 299 for p99 and 0."""
    alpha = 1.0 - confidence
    low, high = k + 1, max(2 * (k + 1), 2)
    while binomial_at_most(k, high, q) > alpha:
        low, high = high, high * 2
    while low < high:
        middle = (low + high) // 2
        if binomial_at_most(k, middle, q) <= alpha:
            high = middle
        else:
            low = middle + 1
    return low
