"""The safety buffer: the only place where it is applied, and it is applied once."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Final

BUFFER_RATIO: Final = 0.20
"""What is kept empty so that the tank cannot overflow."""


def buffer_of(asked_ratio: float | None) -> float:
    """The ratio that a scenario asks for, or ours."""
    return BUFFER_RATIO if asked_ratio is None else asked_ratio


def safe_limit(*limits: float | None, buffer_ratio: float | None = None) -> int:
    """floor((1 - buffer) x the smallest limit that is known), in whole requests; 0 when none is known.

    Exact: 0.8 x 35 is 28, though 0.8 is no binary fraction.
    """
    known = [limit for limit in limits if limit is not None]
    if not known:
        return 0
    kept = 1 - Fraction(str(buffer_of(buffer_ratio)))
    return math.floor(kept * Fraction(str(min(known))))
