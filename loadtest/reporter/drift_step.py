"""Did a series jump? Medians before and after each hour, and whether chance alone parts them as far. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Final

import numpy as np

SIDE_H: Final = 2
"""How many hours before and after are set against each other, as far as the soak has them."""
SIDE_BLOCKS_MIN: Final = 4
STEP_P_VALUE: Final = 0.001
SHUFFLES: Final = 9_999
SHUFFLES_AT_ONCE: Final = 1_111
SEED: Final = 20_261


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The level `after` a full hour of the soak against `before` it, in the series' unit."""

    at_h: int
    before: float
    after: float


def steps_of(blocks: Mapping[float, float], *, slope: float, step_min: float) -> tuple[Step, ...]:
    """Every full hour at which the series rose by more than its trend, `step_min` and chance account for.

    `blocks` are medians by the hour of their middle, `slope` is their rise an hour. Blocks are exchanged, not
    minutes: neighbouring minutes resemble each other, and chance then does more.
    """
    last_h = math.ceil(max(blocks, default=0.0))
    found = (_step(blocks, hour, slope, step_min) for hour in range(1, last_h))
    return tuple(step for step in found if step is not None)


def _step(blocks: Mapping[float, float], hour: int, slope: float, step_min: float) -> Step | None:
    before = {at_h: value for at_h, value in blocks.items() if hour - SIDE_H < at_h < hour}
    after = {at_h: value for at_h, value in blocks.items() if hour < at_h < hour + SIDE_H}
    if min(len(before), len(after)) < SIDE_BLOCKS_MIN:
        return None
    low, high = ([value - slope * at_h for at_h, value in side.items()] for side in (before, after))
    if median(high) - median(low) <= step_min or not _parted(low, high):
        return None
    return Step(at_h=hour, before=median(before.values()), after=median(after.values()))


def _parted(before: list[float], after: list[float]) -> bool:
    """A permutation test of the difference of medians, two-sided; what is seen counts as one of the shuffles.

    It ends as soon as chance has come as far too often.
    """
    values, first = np.array(before + after), len(before)
    seen = abs(median(after) - median(before))
    rng, as_far = np.random.default_rng(SEED), 1
    for _ in range(SHUFFLES // SHUFFLES_AT_ONCE):
        shuffled = rng.permuted(np.tile(values, (SHUFFLES_AT_ONCE, 1)), axis=1)
        apart = np.abs(np.median(shuffled[:, first:], axis=1) - np.median(shuffled[:, :first], axis=1))
        as_far += int(np.count_nonzero(apart >= seen))
        if as_far >= STEP_P_VALUE * (1 + SHUFFLES):
            return False
    return True
