"""When requests come to an open loop, and how long they are: a seed in, arrivals out, no clock."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate, repeat, takewhile

from estimator.spec import SpecError, Workload
from estimator.twin.request import Prefix


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Arrival:
    """One request of an open loop: when it comes (s) and how long it is (tokens)."""

    at_s: float
    prompt_tokens: int
    output_tokens: int
    priority: int = field(default=0, compare=False)
    prefix: Prefix = field(default=(), compare=False)


def poisson(rate_per_s: float, workload: Workload, *, until_s: float, seed: int = 1) -> Iterator[Arrival]:
    """Requests that know nothing of one another, `rate_per_s` on average, none at or after until_s."""
    return gamma(rate_per_s, workload, burstiness=1.0, until_s=until_s, seed=seed)


def gamma(
    rate_per_s: float, workload: Workload, *, burstiness: float, until_s: float, seed: int = 1
) -> Iterator[Arrival]:
    """Gaps drawn from a gamma distribution of mean 1 / rate_per_s and shape `burstiness`.

    In the words of `vllm bench serve --burstiness`: 1 is Poisson, less comes in bursts, more is evener. The
    lengths of the n-th request depend on the seed alone, so two rates compare like with like.

    Raises SpecError for a rate or burstiness that is not positive.
    """
    times_s = gamma_times_s(rate_per_s, burstiness=burstiness, seed=seed)
    lengths = random.Random(f"lengths {seed}")  # noqa: S311
    return (
        Arrival(
            at_s=at_s,
            prompt_tokens=workload.input_tokens.at(lengths.random()),
            output_tokens=workload.output_tokens.at(lengths.random()),
        )
        for at_s in takewhile(lambda at_s: at_s < until_s, times_s)
    )


def gamma_times_s(rate_per_s: float, *, burstiness: float, seed: int | str) -> Iterator[float]:
    """When requests come, seconds, endless: the times alone of `gamma`. Raises SpecError likewise."""
    for name, value in (("rate_per_s", rate_per_s), ("burstiness", burstiness)):
        if not 0.0 < value < float("inf"):
            raise SpecError(f"{name} must be a positive number, got {value}")
    draw, mean_gap_s = random.Random(f"gaps {seed}").gammavariate, 1.0 / (rate_per_s * burstiness)  # noqa: S311
    return accumulate(draw(burstiness, mean_gap_s) for _ in repeat(None))


def trace(rows: Iterable[tuple[float, int, int]], *, speed: float = 1.0) -> Iterator[Arrival]:
    """Recorded traffic, (second, prompt tokens, output tokens) a row, played `speed` times as fast.

    The first row comes at 0 s. Raises SpecError for a speed that is not positive.
    """
    if not 0.0 < speed < float("inf"):
        raise SpecError(f"speed must be a positive number, got {speed}")
    ordered = sorted(rows)
    return (
        Arrival(at_s=(at_s - ordered[0][0]) / speed, prompt_tokens=prompt, output_tokens=output)
        for at_s, prompt, output in ordered
    )
