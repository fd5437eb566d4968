"""Open loops: the workers together send what one would, and the law is the one that was asked for."""

from __future__ import annotations

import heapq
from itertools import islice, pairwise, takewhile
from pathlib import Path
from statistics import fmean, pstdev

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estimator.spec import Workload
from estimator.twin.arrivals import gamma
from loadtest.scenario import ScenarioError
from loadtest.scenario.parts import ArrivalKind, Arrivals
from loadtest.scenario.trace import Trace
from loadtest.workload.arrivals import arrival_times_s

KINDS: tuple[ArrivalKind, ...] = ("poisson", "gamma", "constant")


def arrivals(kind: ArrivalKind, burstiness: float = 0.5) -> Arrivals:
    return Arrivals(kind=kind, burstiness=burstiness) if kind == "gamma" else Arrivals(kind=kind)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(KINDS), st.integers(1, 9), st.floats(0.1, 500), st.integers(0, 99))
def test_the_workers_together_send_exactly_what_one_would(
    kind: ArrivalKind, workers: int, rate: float, seed: int
) -> None:
    alone = list(islice(arrival_times_s(arrivals(kind), rate, seed, 0, 1), 200))
    dealt = (arrival_times_s(arrivals(kind), rate, seed, worker, workers) for worker in range(workers))
    assert list(islice(heapq.merge(*dealt), 200)) == alone
    assert all(before <= after for before, after in pairwise(alone))


@pytest.mark.parametrize(("kind", "spread"), [("poisson", 1.0), ("gamma", 2**0.5), ("constant", 0.0)])
def test_gaps_have_the_mean_and_the_spread_of_their_law(kind: ArrivalKind, spread: float) -> None:
    times_s = list(islice(arrival_times_s(arrivals(kind), 20.0, 3, 0, 1), 20_000))
    gaps_s = [after - before for before, after in pairwise(times_s)]
    assert fmean(gaps_s) == pytest.approx(0.05, rel=0.03)
    assert pstdev(gaps_s) / fmean(gaps_s) == pytest.approx(spread, abs=0.05)


def test_another_seed_gives_other_times() -> None:
    one, other = (list(islice(arrival_times_s(arrivals("poisson"), 5, seed, 0, 1), 9)) for seed in (1, 2))
    assert one != other


def test_the_simulated_server_is_asked_at_the_same_times() -> None:
    times_s = arrival_times_s(arrivals("gamma"), 7.0, 11, 0, 1)
    simulated = gamma(7.0, Workload.constant(8, 8), burstiness=0.5, until_s=20.0, seed=11)
    assert [one.at_s for one in simulated] == list(takewhile(lambda at_s: at_s < 20.0, times_s))


@pytest.fixture
def trace(tmp_path: Path) -> Trace:
    file = tmp_path / "t.csv"
    file.write_text("at_s,input_tokens,output_tokens\n10,5,1\n12,6,1\n16,7,1\n")
    return Trace(file=str(file), format="csv", speed=2.0)


def test_a_trace_is_played_from_its_beginning_at_its_speed_over_and_over(trace: Trace) -> None:
    played = arrival_times_s(arrivals("trace"), None, 1, 0, 1, trace)
    assert list(islice(played, 7)) == [0.0, 1.0, 3.0, 4.5, 5.5, 7.5, 9.0]


def test_the_rows_of_a_trace_are_dealt_out_in_turn(trace: Trace) -> None:
    both = [
        list(islice(arrival_times_s(arrivals("trace"), None, 1, worker, 2, trace), 3)) for worker in (0, 1)
    ]
    assert both == [[0.0, 3.0, 5.5], [1.0, 4.5, 7.5]]


@pytest.mark.parametrize(("kind", "rate"), [("closed", 1.0), ("poisson", None), ("trace", 1.0)])
def test_what_has_no_times_of_its_own_is_refused(kind: ArrivalKind, rate: float | None) -> None:
    with pytest.raises(ScenarioError, match="no times of their own"):
        next(arrival_times_s(arrivals(kind), rate, 1, 0, 1))
