"""What windows, chunks, states and slots ahead hold in the simulated engine, group by group."""

from __future__ import annotations

from typing import Any

import pytest

from estimator.held import InFlight, held_by_step
from estimator.kv_group import KvGroup
from estimator.spec import SpecError
from estimator.twin.engine import Engine, EngineLimits


def group(kind: Any, **more: Any) -> KvGroup:
    return KvGroup(**{"kind": kind, "block_size": 4, "layers": 1, "page_bytes": 0, **more})


FULL = group("full")


def engine(*groups: KvGroup, **changes: Any) -> Engine:
    limits: dict[str, Any] = {
        "num_gpu_blocks": 101,
        "block_size": 4,
        "max_num_seqs": 16,
        "max_num_batched_tokens": 64,
        "max_model_len": 256,
    }
    return Engine(EngineLimits(**{**limits, **changes}, groups=groups))


def held_after_each_step(twin: Engine) -> list[int]:
    held = []
    while twin.has_work:
        step = twin.step()
        held.append(twin.pool.used_blocks)
        twin.settle(step)
    return held


@pytest.mark.parametrize(
    "kept",
    [
        group("window", reach_tokens=1),
        group("window", reach_tokens=10),
        group("chunk", reach_tokens=8),
        group("chunk", reach_tokens=10),
        group("state", state_blocks=3),
        group("state", state_blocks=1, rolls=True),
        group("full", ahead_tokens=6),
    ],
    ids=lambda g: f"{g.kind}-{g.reach_tokens or g.state_blocks}",
)
def test_each_kind_of_group_holds_what_the_estimator_says_it_holds(kept: KvGroup) -> None:
    twin = engine(FULL, kept)
    twin.add("a", prompt_tokens=17, max_tokens=40)
    want = held_by_step((FULL, kept), 17, 40, InFlight(steps=1, chunk_tokens=64))
    assert held_after_each_step(twin) == list(want)


def test_groups_take_their_blocks_from_one_pool() -> None:
    twin = engine(FULL, group("window", reach_tokens=8), FULL)
    twin.add("a", prompt_tokens=16, max_tokens=4)
    twin.step()
    assert twin.pool.used_blocks == 3 * 4


def test_a_window_lets_a_prompt_in_that_would_not_fit_at_its_full_length() -> None:
    cramped = {"num_gpu_blocks": 12, "max_num_batched_tokens": 16}
    window = engine(group("window", reach_tokens=9), **cramped)
    window.add("a", prompt_tokens=80, max_tokens=4)  # 20 blocks; 9 - 1 + 16 tokens touch 7
    step = window.step()
    assert step.admitted
    assert window.pool.used_blocks == 4
    window.settle(step)
    assert max(held_after_each_step(window)) <= 7
    with pytest.raises(SpecError, match="needs 21 blocks and the cache has 11"):
        engine(FULL, **cramped).add("a", prompt_tokens=80, max_tokens=4)


def test_a_window_lets_the_second_request_in_where_full_attention_does_not() -> None:
    cramped = {"num_gpu_blocks": 24, "max_num_batched_tokens": 32}
    running = []
    for kept in (FULL, group("window", reach_tokens=5)):
        twin = engine(kept, **cramped)
        for name in ("a", "b"):
            twin.add(name, prompt_tokens=60, max_tokens=20)
        for _ in range(6):
            twin.settle(twin.step())
        running.append(len(twin.running))
    assert running == [1, 2]


def test_chunks_of_a_prompt_end_where_a_rolling_state_is_kept() -> None:
    twin = engine(FULL, group("state", state_blocks=1, rolls=True), max_num_batched_tokens=16, max_num_seqs=4)
    twin.add("a", prompt_tokens=27, max_tokens=2)
    chunks = []
    while twin.has_work:
        step = twin.step()
        chunks.append(step.prefill_tokens)
        twin.settle(step)
    assert chunks == [16, 8, 3, 0]


def test_a_chunk_that_cannot_end_at_a_state_waits_and_lets_others_pass() -> None:
    state = group("state", state_blocks=1, rolls=True)
    twin = engine(FULL, state, max_num_batched_tokens=7, max_num_seqs=4)
    twin.add("short", prompt_tokens=3, max_tokens=20)
    twin.settle(twin.step())
    for name in ("b", "c", "d"):
        twin.add(name, prompt_tokens=1, max_tokens=20)
    twin.settle(twin.step())
    assert len(twin.running) == 4
    twin.abort("d")
    twin.add("long", prompt_tokens=10, max_tokens=2)
    step = twin.step()  # 4 tokens left: one whole block
    assert (step.prefill_tokens, step.decoding) == (4, 3)


def test_slots_ahead_end_at_max_model_len() -> None:
    twin = engine(group("full", ahead_tokens=40), max_model_len=32)
    twin.add("a", prompt_tokens=20, max_tokens=12)
    assert max(held_after_each_step(twin)) == 8


def test_the_watermark_is_kept_free_beside_others_but_not_for_a_lone_request() -> None:
    twin = engine(FULL, num_gpu_blocks=21, watermark=0.25)
    twin.add("a", prompt_tokens=60, max_tokens=4)  # 15 of 20 blocks, 5 short of the 5 to be kept free
    twin.add("b", prompt_tokens=4, max_tokens=4)
    step = twin.step()
    assert [request.request_id for request in step.admitted] == ["a"]
    assert [request.request_id for request in twin.waiting] == ["b"]


def test_priority_decides_who_is_let_in_and_who_is_preempted() -> None:
    twin = engine(FULL, num_gpu_blocks=7, max_model_len=24, policy="priority")
    for name, priority in (("late", 2), ("soon", 0), ("next", 1)):
        twin.add(name, prompt_tokens=8, max_tokens=8, priority=priority)
    step = twin.step()
    assert [request.request_id for request in step.admitted] == ["soon", "next", "late"]
    twin.settle(step)
    assert [request.request_id for request in twin.step().preempted] == ["late"]


def test_a_preempted_request_in_the_middle_stops_the_step_for_those_behind_it() -> None:
    twin = engine(FULL, num_gpu_blocks=7, max_model_len=24, policy="priority")
    twin.add("unloved", prompt_tokens=8, max_tokens=8, priority=9)
    twin.settle(twin.step())
    for name in ("b", "c"):
        twin.add(name, prompt_tokens=5, max_tokens=8)
    first = twin.step()
    assert len(first.admitted) == 1  # 2 + 1 blocks and 2 for b; c does not fit
    twin.settle(first)
    seen = []
    while twin.has_work:
        step = twin.step()
        if step.preempted:
            seen.append([request.request_id for request in step.batch])
        twin.settle(step)
    assert twin.stats.finished == {"length": 3}
    assert all("unloved" not in batch for batch in seen)
