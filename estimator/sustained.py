"""N_sustained: how many requests may run in a closed loop with next to no chance of a preemption in an hour.

Requests of random phase and length seldom stand at their longest together, so more fit than N_guaranteed
promises; how many follows from the distribution of what one holds, by Chernoff's bound:

    P(blocks of N requests > usable) <= min over t of exp(N * log E[exp(t * held)] - t * usable)

and a union over every moment of the hour at which some request asks for a block. The bound holds for
requests that are independent of one another; requests that all start at once march in step, and for them
only N_guaranteed is safe.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from estimator.kv_group import KvGroup
from estimator.spec import Lengths, Workload

PREEMPTION_CHANCE_MAX: Final = 0.01
HOUR_S: Final = 3600.0
STEP_S: Final = 0.02
"""Seconds between two tokens of a request. Only its logarithm enters: ten times faster costs about 2%."""
LENGTH_SHARES: Final = 24
LIFE_SHARES: Final = 16
TILTS: Final = 24
"""Steps of the golden section; the bound holds at any tilt, more steps only sharpen it."""
GOLDEN: Final = (math.sqrt(5.0) - 1.0) / 2.0


def held_histogram(
    groups: Sequence[KvGroup], workload: Workload, in_flight_tokens: int = 0
) -> dict[int, float]:
    """Share of its running time that a request of this workload holds each number of blocks.

    Lengths are taken at evenly spaced shares of their distributions, the life of a request at evenly spaced
    steps; a long answer weighs by how long it runs.
    """
    weights: dict[int, float] = {}
    for input_tokens in _typical(workload.input_tokens):
        for output_tokens in _typical(workload.output_tokens):
            steps = max(output_tokens - 1, 1)
            points = min(steps, LIFE_SHARES if workload.output_tokens.kind != "constant" else 256)
            for point in range(points):
                tokens = input_tokens + 1 + int((point + 0.5) * steps / points)
                held = sum(group.held(tokens, in_flight_tokens) for group in groups)
                weights[held] = weights.get(held, 0.0) + steps / points
    total = sum(weights.values())
    return {held: weight / total for held, weight in sorted(weights.items())}


def n_sustained(histogram: dict[int, float], usable_blocks: int, guaranteed: int) -> int:
    """Largest N whose chance of any preemption in an hour is at most 1%; never below N_guaranteed."""
    mean = sum(held * share for held, share in histogram.items())
    low, high = guaranteed, max(guaranteed, int(usable_blocks / mean))
    while low < high:
        middle = (low + high + 1) // 2
        if preemption_chance(histogram, usable_blocks, middle) <= PREEMPTION_CHANCE_MAX:
            low = middle
        else:
            high = middle - 1
    return low


def preemption_chance(histogram: dict[int, float], usable_blocks: int, requests: int) -> float:
    """An upper bound, at most 1, of the chance that `requests` ask for more than there is within an hour."""
    opportunities = requests * HOUR_S / STEP_S
    log_chance = math.log(opportunities) + _log_tail(histogram, usable_blocks + 1, requests)
    return math.exp(min(0.0, log_chance))


def _log_tail(histogram: dict[int, float], blocks: int, requests: int) -> float:
    """Chernoff's bound of log P(sum of `requests` draws >= blocks), least over the tilt by golden section."""
    longest = max(histogram)
    if requests * longest < blocks:
        return -math.inf
    pairs = [(share, held - longest) for held, share in histogram.items()]

    def exponent(tilt: float) -> float:
        moment = sum(share * math.exp(tilt * short) for share, short in pairs)
        return requests * (math.log(moment) + tilt * longest) - tilt * blocks

    low, high = 0.0, 50.0 / max(1.0, _spread(histogram))
    left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    at_left, at_right = exponent(left), exponent(right)
    for _ in range(TILTS):
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - GOLDEN * (high - low)
            at_left = exponent(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + GOLDEN * (high - low)
            at_right = exponent(right)
    return min(0.0, at_left, at_right)


def _spread(histogram: dict[int, float]) -> float:
    mean = sum(held * share for held, share in histogram.items())
    return math.sqrt(sum(share * (held - mean) ** 2 for held, share in histogram.items()))


def _typical(lengths: Lengths) -> tuple[int, ...]:
    if lengths.kind == "constant":
        return (lengths.longest,)
    return tuple(lengths.at((i + 0.5) / LENGTH_SHARES) for i in range(LENGTH_SHARES))
