"""Good, bad, or not known yet? What a run's requests say about the share that breaks a limit. Pure.

A request violates when it breaks a limit or does not succeed. "p95 at 95% confidence" asks: do we know, with
95% confidence, that at most 5% of requests violate? Requests of one run resemble each other, so their number
counts for less: it is divided by a design effect.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from loadtest.sequential.binomial import binomial_at_least, binomial_at_most, requests_needed, upper_bound

Answer = Literal["good", "bad", "unknown"]

DESIGN_EFFECT_DEFAULT: Final = 4.0
"""Batch servers below their knee show 3 to 3.5. Never less: where little violates, nothing shows that the
little would not come together."""
BATCHES: Final = (40, 20, 10)
"""Correlation is seen only by batches longer than itself, and only by several of them: each is tried."""
BATCH_SIZE_MIN: Final = 20


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


def weigh(
    violations: Sequence[int],
    *,
    q: float,
    confidence: float = 0.95,
    design_effect_min: float = DESIGN_EFFECT_DEFAULT,
) -> Evidence:
    """`violations` holds 1 for each request that violates and 0 for the others, in order of time.

    Exact one-sided tests in both directions on the effective sample (Clopper and Pearson)."""
    n, k = len(violations), sum(violations)
    effect = design_effect(violations, least=design_effect_min)
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


def design_effect(violations: Sequence[int], *, least: float = DESIGN_EFFECT_DEFAULT) -> float:
    """How much less a request counts because its neighbours in time share its fate; at least `least`.

    Variance of the violation rate between batches of consecutive requests over what independent requests
    would show, for the number of batches that shows most of it.
    """
    return max([least, *(_between(violations, batches) for batches in BATCHES)])


def _between(violations: Sequence[int], batches: int) -> float:
    """0 where the batches would be too small, or nothing differs."""
    size = len(violations) // batches
    if size < BATCH_SIZE_MIN:
        return 0.0
    counts = [sum(violations[at : at + size]) for at in range(0, size * batches, size)]
    rate = sum(counts) / (size * batches)
    if rate in (0.0, 1.0):
        return 0.0
    mean = rate * size
    variance = sum((count - mean) ** 2 for count in counts) / (batches - 1)
    return variance / (size * rate * (1 - rate))
