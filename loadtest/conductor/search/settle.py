"""When a level counts as settled: the change of users has passed, and the requests show it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from loadtest.sequential import settled_from

SETTLE_MIN_S: Final = 10.0
ROUNDS_LEFT_OUT: Final = 1.5
"""Durations of a request: after one, everybody who was there before the change has left."""
ROUNDS_MAX: Final = 6.0
"""A level that moves for so long moves on; the test then counts its batches for less."""


def has_settled(
    elapsed_s: float, request_s: float, ttft_s: Sequence[float], *, least_s: float = SETTLE_MIN_S
) -> bool:
    """`elapsed_s` since the users changed; `request_s` a request's mean duration; never before `least_s`.

    `ttft_s` of the requests sent since then, in that order.
    """
    if elapsed_s < max(least_s, ROUNDS_LEFT_OUT * request_s):
        return False
    return elapsed_s >= max(2 * least_s, ROUNDS_MAX * request_s) or settled_from(ttft_s) is not None
