"""One more state, of a prompt's last whole block, saved while its last chunk is read. Blocks of 4 tokens."""

from __future__ import annotations

from typing import Any

import pytest

from estimator.held import InFlight, held_by_step
from estimator.kv_group import KvGroup
from estimator.twin.engine import Engine, EngineLimits, Step

SHAPE: dict[str, Any] = {"kind": "state", "block_size": 4, "layers": 1, "page_bytes": 0, "state_blocks": 1}
ROLLS = KvGroup(**SHAPE, rolls=True)
SAVED = KvGroup(**SHAPE, rolls=True, checkpoint=True)


def engine(group: KvGroup, **changes: Any) -> Engine:
    limits: dict[str, Any] = {
        "num_gpu_blocks": 101,
        "block_size": 4,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 64,
        "max_model_len": 256,
    }
    return Engine(EngineLimits(**{**limits, **changes}, groups=(group,)))


def steps_to_the_first_token(twin: Engine) -> list[tuple[Step, int]]:
    """Each step and the blocks held in it."""
    steps = []
    while True:
        step = twin.step()
        steps.append((step, twin.pool.used_blocks))
        if twin.settle(step).first:
            return steps


def test_a_checkpoint_spares_the_stop_at_the_last_whole_block() -> None:
    seen = {}
    for group in (ROLLS, SAVED):
        twin = engine(group)
        twin.add("a", prompt_tokens=18, max_tokens=4)
        steps = steps_to_the_first_token(twin)
        seen[group.checkpoint] = [(step.prefill_tokens, held) for step, held in steps]
    assert seen == {False: [(16, 1), (2, 2)], True: [(18, 2)]}


def test_a_checkpoint_is_given_back_when_decoding_has_begun() -> None:
    twin = engine(SAVED)
    twin.add("a", prompt_tokens=18, max_tokens=4)
    steps_to_the_first_token(twin)
    twin.step()
    assert twin.pool.used_blocks == 1


@pytest.mark.parametrize(("interval_tokens", "held"), [(0, [1, 2, 3]), (None, [2, 3, 3])])
def test_only_the_last_chunk_saves_one_unless_states_are_kept_on_the_way(
    interval_tokens: int | None, held: list[int]
) -> None:
    twin = engine(SAVED, max_num_batched_tokens=8, prefix_cache_retention_interval=interval_tokens)
    twin.add("a", prompt_tokens=24, max_tokens=4)
    assert [blocks for _, blocks in steps_to_the_first_token(twin)] == held


def test_a_block_for_the_checkpoint_must_be_free_at_admission() -> None:
    admitted = {}
    for group in (ROLLS, SAVED):
        twin = engine(group, num_gpu_blocks=4, max_num_batched_tokens=8)
        for name, prompt_tokens in (("a", 1), ("b", 1), ("c", 12)):  # of the last, 4 tokens in this step
            twin.add(name, prompt_tokens, max_tokens=3)
        admitted[group.checkpoint] = len(twin.step().admitted)
    assert admitted == {False: 3, True: 2}


def test_two_steps_in_flight_hold_what_the_estimator_says() -> None:
    twin = engine(SAVED, max_num_batched_tokens=8, steps_in_flight=2)
    twin.add("a", prompt_tokens=30, max_tokens=6)
    held, under_way = [], []
    while twin.has_work:
        under_way.append(twin.step())
        if under_way[-1].batch:
            held.append(twin.pool.used_blocks)
        if len(under_way) == 2:
            twin.settle(under_way.pop(0))
    assert held == list(held_by_step((SAVED,), 30, 6, InFlight(steps=2, chunk_tokens=8)))
