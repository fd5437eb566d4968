"""A straight line through measured memory against input length: what it starts from, what a token adds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import linear_regression

from estimator.spec import SpecError


@dataclass(frozen=True, slots=True, kw_only=True)
class LineFit:
    """memory_mib = base_mib + slope_mib_per_token x tokens.

    It describes the measurement it was fitted to. A line through *peak* memory includes working memory
    that is freed again, so its slope is no price of a token in the KV cache (docs/reference/peak-memory.md).
    """

    base_mib: float
    slope_mib_per_token: float
    residual_mib: float
    """Root mean square of what the line misses, over the fitted points; 0 for two points."""

    def memory_mib(self, tokens: float) -> float:
        """The line's memory at this input length, in MiB."""
        return self.base_mib + self.slope_mib_per_token * tokens


def fit_line(lengths_tokens: Sequence[float], memory_mib: Sequence[float]) -> LineFit:
    """Ordinary least squares, every point of equal weight: input lengths in tokens against memory in MiB.

    Raises SpecError unless there are as many memories as lengths, all finite, at two lengths or more.
    """
    if len(lengths_tokens) != len(memory_mib):
        raise SpecError(
            f"a line needs one memory for each length, got {len(lengths_tokens)} lengths and "
            f"{len(memory_mib)} memories"
        )
    if not all(math.isfinite(number) for number in (*lengths_tokens, *memory_mib)):
        raise SpecError("a line needs finite lengths and memories; leave out the points that failed")
    if len(set(lengths_tokens)) < 2:
        raise SpecError("a line needs memory measured at two different input lengths or more")
    slope, base = linear_regression(lengths_tokens, memory_mib)
    missed = [
        memory - base - slope * tokens for tokens, memory in zip(lengths_tokens, memory_mib, strict=True)
    ]
    return LineFit(
        base_mib=base,
        slope_mib_per_token=slope,
        residual_mib=math.sqrt(math.fsum(miss * miss for miss in missed) / len(missed)),
    )
