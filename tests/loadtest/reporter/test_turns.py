"""Processes that answer /metrics in turn are no restart; engines that are loaded unevenly are named."""

from __future__ import annotations

import pytest

from loadtest.records import Sample
from loadtest.reporter.turns import takes_turns
from loadtest.reporter.uneven import Uneven, uneven
from loadtest.reporter.validity import server_death
from loadtest.request_table import RequestTable

NO_REQUESTS = RequestTable.of([])


def looks(signal: str, *values: float) -> list[Sample]:
    return [
        Sample(at_ns=at, source="engine", target="t", signals={signal: value})
        for at, value in enumerate(values)
    ]


def tokens(*values: float) -> list[Sample]:
    return looks("generation_tokens_total", *values)


@pytest.mark.parametrize("several", [tokens(100, 90, 120, 95, 130), tokens(5, 900, 7, 950, 9, 990)])
def test_counters_that_jump_back_and_forth_are_several_processes(several: list[Sample]) -> None:
    assert takes_turns(several)
    assert server_death(NO_REQUESTS, several) is None


def test_a_start_time_that_comes_back_is_another_process_that_lives_on() -> None:
    several = looks("process_start_time_seconds", 10, 20, 10)
    assert takes_turns(several)
    assert server_death(NO_REQUESTS, several) is None


@pytest.mark.parametrize(
    "restarted",
    [
        tokens(100, 200, 0, 50, 90),
        tokens(100, 200, 0, 5_000),  # busy enough to be back within a look
        tokens(100, 0, 50, 0, 40),  # twice, and never back
        looks("process_start_time_seconds", 10, 10, 20, 30),
    ],
)
def test_a_restart_stays_one(restarted: list[Sample]) -> None:
    assert not takes_turns(restarted)
    assert "restarted" in str(server_death(NO_REQUESTS, restarted))


def engines(*pairs: tuple[float, float], count: float = 4) -> list[Sample]:
    return [
        Sample(
            at_ns=at,
            source="engine",
            target="t",
            signals={"engines": count, "kv_usage_ratio": fullest, "kv_usage_mean_ratio": mean},
        )
        for at, (fullest, mean) in enumerate(pairs)
    ]


def test_one_full_engine_among_empty_ones_is_named() -> None:
    found = uneven(engines((0.97, 0.61), (0.98, 0.60), (0.2, 0.2)))
    assert found == Uneven(engines=4, fullest_ratio=0.97, mean_ratio=0.6)
    assert str(found) == "unevenly: of 4 engines the fullest held 97% of its KV cache, the mean was 60%"


@pytest.mark.parametrize(
    "alike", [engines((0.97, 0.9)), engines((0.4, 0.1)), engines((0.97, 0.5), count=1), []]
)
def test_engines_that_are_alike_or_have_room_are_not_spoken_of(alike: list[Sample]) -> None:
    assert uneven(alike) is None
