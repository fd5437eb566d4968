"""Open-loop traffic: from a seed, at the rate asked for, as even or bursty as asked for."""

from __future__ import annotations

import statistics
from itertools import pairwise

import pytest

from estimator.spec import Lengths, SpecError, Workload
from estimator.twin.arrivals import Arrival, gamma, poisson, trace

CHAT = Workload(input_tokens=Lengths(kind="uniform", min=10, max=20), output_tokens=Lengths.constant(5))


def gaps_s(arrivals: list[Arrival]) -> list[float]:
    return [after.at_s - before.at_s for before, after in pairwise(arrivals)]


def test_poisson_traffic_has_its_rate_and_gaps_as_wide_as_their_mean() -> None:
    arrivals = list(poisson(5.0, CHAT, until_s=2000.0))
    assert len(arrivals) == pytest.approx(10_000, rel=0.03)
    assert statistics.stdev(gaps_s(arrivals)) == pytest.approx(1 / 5.0, rel=0.05)
    assert all(0.0 < arrival.at_s < 2000.0 for arrival in arrivals)


@pytest.mark.parametrize("burstiness", [0.25, 4.0])
def test_burstiness_sets_the_spread_of_the_gaps_and_not_the_rate(burstiness: float) -> None:
    arrivals = list(gamma(5.0, CHAT, burstiness=burstiness, until_s=4000.0))
    assert len(arrivals) == pytest.approx(20_000, rel=0.05)
    assert statistics.stdev(gaps_s(arrivals)) == pytest.approx(1 / 5.0 / burstiness**0.5, rel=0.08)


def test_the_same_seed_gives_the_same_traffic_and_another_seed_another() -> None:
    first, again, other = (list(poisson(3.0, CHAT, until_s=50.0, seed=seed)) for seed in (7, 7, 8))
    assert first == again
    assert first != other


def test_the_lengths_do_not_depend_on_the_rate() -> None:
    slow, fast = (list(poisson(rate, CHAT, until_s=50.0)) for rate in (2.0, 8.0))
    assert [a.prompt_tokens for a in slow] == [a.prompt_tokens for a in fast][: len(slow)]


def test_a_trace_is_played_in_order_from_zero_and_as_fast_as_asked() -> None:
    rows = [(102.0, 30, 3), (100.0, 10, 1), (101.0, 20, 2)]
    assert list(trace(rows, speed=2.0)) == [
        Arrival(at_s=0.0, prompt_tokens=10, output_tokens=1),
        Arrival(at_s=0.5, prompt_tokens=20, output_tokens=2),
        Arrival(at_s=1.0, prompt_tokens=30, output_tokens=3),
    ]
    assert list(trace([])) == []


@pytest.mark.parametrize("rate_per_s", [0.0, -1.0, float("inf"), float("nan")])
def test_a_rate_that_is_none_is_refused_with_a_sentence(rate_per_s: float) -> None:
    with pytest.raises(SpecError, match="rate_per_s must be a positive number"):
        poisson(rate_per_s, CHAT, until_s=1.0)
