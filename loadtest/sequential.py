"""Good, bad, or not known yet? Exact binomial answers about the share of requests that break a limit. Pure.

A request violates when it breaks a limit or does not succeed. "p95 at 95% confidence" asks: do we know, with
95% confidence, that at most 5% of requests violate? Requests of one run resemble each other, so their number
counts for less: it is divided by a design effect.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, pvariance
from typing import Final, Literal

Answer = Literal["good", "bad", "unknown"]

DESIGN_EFFECT_DEFAULT: Final = 4.0
"""Where nothing violated it cannot be estimated; batch servers below their knee show 3 to 3.5."""
NEGLIGIBLE: Final = 1e-18
"""A term this much smaller than the sum so far ends the sum: what follows cannot change its last digit."""
BATCHES_MIN: Final = 10
BATCH_SIZE_MIN: Final = 20


def binomial_at_most(k: int, n: int, p: float) -> float:
    """P(X <= k) for X binomial(n, p), summed exactly in logarithms."""
    if k >= n:
        return 1.0
    if k < 0:
        return 0.0
    return min(1.0, math.fsum(_terms(range(k, -1, -1), n, p)))


def binomial_at_least(k: int, n: int, p: float) -> float:
    """P(X >= k) for X binomial(n, p)."""
    if k <= 0:
        return 1.0
    if k > n:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What `n` requests with `k` violations say about "at most a share `q` violates" at `confidence`."""

    n: int
    k: int
    q: float
    confidence: float
    design_effect: float
    answer: Answer
    share_at_most: float | None
    """Upper confidence bound of the share that violates (Clopper and Pearson); None without a request."""
    more_needed: int
    """Clean requests still missing for "good"; 0 unless the answer is unknown."""


def weigh(violations: Sequence[int], *, q: float, confidence: float = 0.95) -> Evidence:
    """`violations` holds 1 for each request that violates and 0 for the others, in order of time.

    Exact one-sided tests in both directions on the effective sample (Clopper and Pearson)."""
    n, k = len(violations), sum(violations)
    effect = design_effect(violations)
    # rounded against the answer that is tested: a doubt must not help it
    n_effective, k_effective = int(n / effect), math.ceil(k / effect)
    alpha = 1.0 - confidence
    answer: Answer = "unknown"
    if n_effective > 0 and binomial_at_most(k_effective, n_effective, q) <= alpha:
        answer = "good"
    elif binomial_at_least(int(k / effect), math.ceil(n / effect), q) <= alpha:
        answer = "bad"
    needed = math.ceil(requests_needed(k_effective, q=q, confidence=confidence) * effect)
    return Evidence(
        n=n,
        k=k,
        q=q,
        confidence=confidence,
        design_effect=effect,
        answer=answer,
        share_at_most=upper_bound(k_effective, n_effective, confidence=confidence) if n_effective else None,
        more_needed=max(needed - n, 1) if answer == "unknown" else 0,
    )


def upper_bound(k: int, n: int, *, confidence: float) -> float:
    """The largest share that k violations in n requests leave possible at `confidence`, to 1e-9.

    Source: Clopper and Pearson (1934), one-sided: the p for which P(X <= k) = 1 - confidence.
    """
    if k >= n:
        return 1.0
    low, high = k / n, 1.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        if binomial_at_most(k, n, middle) > 1.0 - confidence:
            low = middle
        else:
            high = middle
    return high


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


def design_effect(violations: Sequence[int]) -> float:
    """How much less a request counts because its neighbours in time share its fate; at least 1.

    Variance of the violation rate between batches of consecutive requests over what independent requests
    would show. The default where there is too little to see it.
    """
    batches = min(len(violations) // BATCH_SIZE_MIN, 50)
    rate = fmean(violations) if violations else 0.0
    if batches < BATCHES_MIN or rate in (0.0, 1.0):
        return DESIGN_EFFECT_DEFAULT
    size = len(violations) // batches
    rates = [fmean(violations[i * size : (i + 1) * size]) for i in range(batches)]
    return max(1.0, pvariance(rates) * batches / (batches - 1) / (rate * (1 - rate) / size))
