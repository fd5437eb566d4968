"""Has a level settled? Where the start-up ends in a series of values, found from the series alone. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Final

BATCH: Final = 5


def settled_from(values: Sequence[float]) -> int | None:
    """The index from which on `values`, in order of time, show no start-up any more; None: not settled yet.

    MSER-5: leave out as many batches of five as makes the standard error of the mean of the rest smallest.
    A minimum at the edge of the first half says that the series still moves. Source: White, Cobb and Spratt
    (2000), A comparison of five steady-state truncation heuristics.
    """
    means = [fmean(values[at : at + BATCH]) for at in range(0, len(values) - BATCH + 1, BATCH)]
    candidates = range((len(means) + 1) // 2)
    if len(candidates) < 2:
        return None
    errors = _squared_errors(means)
    left_out = min(candidates, key=errors.__getitem__)
    return None if left_out == candidates[-1] else left_out * BATCH


def _squared_errors(means: Sequence[float]) -> list[float]:
    """For each d: sum of squares of means[d:] around their mean, over the square of their number."""
    errors, mean, squares = [], 0.0, 0.0
    for count, value in enumerate(reversed(means), start=1):
        before = value - mean
        mean += before / count
        squares += before * (value - mean)
        errors.append(squares / count**2)
    return errors[::-1]
