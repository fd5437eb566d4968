"""Which waves are sent: enough to tell the terms apart, never enough to fill the server."""

from __future__ import annotations

import pytest

from estimator.errors import PlainError
from loadtest.calibrator.waves import POOL_SHARE_MAX, REPEATS, Room, waves


def test_a_server_that_says_nothing_gets_every_wave() -> None:
    plan = waves(Room())
    assert {wave.streams for wave in plan if not wave.is_prefill} == {1, 2, 4, 8, 16, 32}
    assert len([wave for wave in plan if wave.is_prefill]) == 6 * REPEATS


def test_repeats_come_in_turns() -> None:
    plan = waves(Room())
    once = len(plan) // REPEATS
    assert plan[:once] == plan[once : 2 * once]


def test_no_wave_takes_more_than_half_the_cache() -> None:
    room = Room(kv_tokens=4096, max_model_len=2048)
    assert max(wave.tokens for wave in waves(room)) <= POOL_SHARE_MAX * 4096


def test_no_wave_is_longer_than_the_model_or_wider_than_the_slots() -> None:
    plan = waves(Room(max_model_len=600, max_num_seqs=4))
    assert max(wave.input_tokens + wave.output_tokens for wave in plan) <= 600
    assert max(wave.streams for wave in plan) == 4


def test_prompts_are_long_enough_to_be_unique() -> None:
    assert min(wave.input_tokens for wave in waves(Room(shortest_input_tokens=100))) == 100


@pytest.mark.parametrize(
    "room", [Room(max_model_len=128), Room(kv_tokens=500), Room(shortest_input_tokens=2001)]
)
def test_a_server_too_small_to_measure_is_named(room: Room) -> None:
    with pytest.raises(PlainError, match="too little room"):
        waves(room)
