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
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import MappingProxyType
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


@lru_cache(maxsize=64)
def held_histogram(
    groups: tuple[KvGroup, ...], workload: Workload, in_flight_tokens: int = 0
) -> Mapping[int, float]:
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
    return MappingProxyType({held: weight / total for held, weight in sorted(weights.items())})


def n_sustained(histogram: Mapping[int, float], usable_blocks: int, guaranteed: int, engines: int = 1) -> int:
    """Largest N whose chance of any preemption in an hour is at most 1%; never below N_guaranteed.

    Of one engine; `engines` of them share the 1%.
    At a given tilt t the largest N solves log(N * moments) + N * log E[exp(t h)] - t * blocks = log(1%);
    the best tilt is found by golden section, so that each tilt is worked out once.
    """
    if usable_blocks < 1:
        return guaranteed
    blocks = usable_blocks + 1
    budget = math.log(PREEMPTION_CHANCE_MAX / engines * STEP_S / HOUR_S)
    largest = _highest(
        lambda tilt: _requests(_log_moment(histogram, tilt), tilt * blocks + budget), histogram
    )
    return max(guaranteed, min(int(largest), int(usable_blocks / _mean(histogram))))


def preemption_chance(histogram: Mapping[int, float], usable_blocks: int, requests: int) -> float:
    """An upper bound, at most 1, of the chance that `requests` ask for more than there is within an hour."""
    blocks = usable_blocks + 1
    if requests * max(histogram) < blocks:
        return 0.0
    gain = _highest(lambda tilt: tilt * blocks - requests * _log_moment(histogram, tilt), histogram)
    return math.exp(min(0.0, math.log(requests * HOUR_S / STEP_S) - max(0.0, gain)))


def _requests(log_moment: float, room: float) -> float:
    """N with log N + N * log_moment = room, by Newton's method; 0 where not even one request fits."""
    if room <= log_moment:
        return 0.0
    count = room / log_moment
    for _ in range(6):
        count -= (math.log(count) + count * log_moment - room) / (1.0 / count + log_moment)
        count = max(count, 1.0)
    return count


def _log_moment(histogram: Mapping[int, float], tilt: float) -> float:
    """log E[exp(tilt * held)], the largest term taken out so that nothing overflows."""
    longest = max(histogram)
    moment = sum(share * math.exp(tilt * (held - longest)) for held, share in histogram.items())
    return math.log(moment) + tilt * longest


def _highest(of: Callable[[float], float], histogram: Mapping[int, float]) -> float:
    """The most `of` reaches at any tilt, by golden section."""
    low, high = 0.0, 50.0 / max(1.0, _spread(histogram))
    left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    at_left, at_right = of(left), of(right)
    for _ in range(TILTS):
        if at_left > at_right:
            high, right, at_right = right, left, at_left
            left = high - GOLDEN * (high - low)
            at_left = of(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + GOLDEN * (high - low)
            at_right = of(right)
    return max(at_left, at_right)


def _mean(histogram: Mapping[int, float]) -> float:
    return sum(held * share for held, share in histogram.items())


def _spread(histogram: Mapping[int, float]) -> float:
    mean = _mean(histogram)
    return math.sqrt(sum(share * (held - mean) ** 2 for held, share in histogram.items()))


def _typical(lengths: Lengths) -> tuple[int, ...]:
    if lengths.kind == "constant":
        return (lengths.longest,)
    return tuple(lengths.at((i + 0.5) / LENGTH_SHARES) for i in range(LENGTH_SHARES))
