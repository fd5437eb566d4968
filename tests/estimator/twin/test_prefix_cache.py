"""What a shared beginning saves, what is forgotten first, and that free blocks with content are free."""

from __future__ import annotations

from typing import Any

from estimator.twin.blocks import BlockPool
from estimator.twin.engine import Engine, EngineLimits, Step
from estimator.twin.request import Prefix

RULES: Prefix = (("rules", 10),)


def engine(**changes: Any) -> Engine:
    limits: dict[str, Any] = {
        "num_gpu_blocks": 101,
        "block_size": 4,
        "max_num_seqs": 16,
        "max_num_batched_tokens": 64,
        "max_model_len": 256,
        "enable_prefix_caching": True,
    }
    return Engine(EngineLimits(**{**limits, **changes}))


def run(twin: Engine) -> list[Step]:
    steps = []
    while twin.has_work:
        steps.append(twin.step())
        twin.settle(steps[-1])
    return steps


def test_whole_blocks_of_a_shared_prefix_are_not_computed_again() -> None:
    twin = engine()
    for name in ("a", "b"):
        twin.add(name, prompt_tokens=15, max_tokens=2, prefix=RULES)
        prefill_tokens = run(twin)[0].prefill_tokens
    assert prefill_tokens == 15 - 8  # two whole blocks of the ten shared tokens
    assert (twin.stats.prefix_cache_queries, twin.stats.prefix_cache_hits) == (30, 8)


def test_requests_that_run_together_hold_shared_blocks_once() -> None:
    twin = engine()
    requests = [twin.add(name, prompt_tokens=15, max_tokens=9, prefix=RULES) for name in ("a", "b")]
    twin.settle(twin.step())
    assert requests[0].blocks[:2] == requests[1].blocks[:2]
    assert twin.pool.used_blocks == 4 + 4 - 2
    twin.abort("a")
    assert twin.pool.used_blocks == 4
    run(twin)
    assert twin.pool.used_blocks == 0


def test_the_last_token_of_a_prompt_is_always_computed() -> None:
    twin = engine()
    for name in ("a", "b"):
        twin.add(name, prompt_tokens=8, max_tokens=2, prefix=(("same", 8),))
        prefill_tokens = run(twin)[0].prefill_tokens
    assert prefill_tokens == 4


def test_the_next_turn_of_a_talk_finds_the_answer_before_it() -> None:
    twin = engine()
    twin.add("turn 1", prompt_tokens=10, max_tokens=10, prefix=(("rules", 8), ("talk", 19)))
    run(twin)
    twin.add("turn 2", prompt_tokens=30, max_tokens=2, prefix=(("rules", 8), ("talk", 30)))
    assert run(twin)[0].prefill_tokens == 30 - 16
    twin.add("other talk", prompt_tokens=30, max_tokens=2, prefix=(("rules", 8), ("another", 30)))
    assert run(twin)[0].prefill_tokens == 30 - 8


def test_a_preempted_request_finds_its_own_blocks_again_and_counts_no_second_query() -> None:
    twin = engine(num_gpu_blocks=8, max_model_len=24)
    for name in ("a", "b", "c"):
        twin.add(name, prompt_tokens=8, max_tokens=4)
    twin.settle(twin.step())
    step = twin.step()
    victim = step.preempted[0]
    assert victim.tokens == 9
    twin.settle(step)
    run(twin)
    assert victim.cached_tokens > 0
    assert (twin.stats.prefix_cache_queries, twin.stats.prefix_cache_hits) == (24, 0)


def test_blocks_with_content_count_as_free_and_are_overwritten_when_blank_ones_are_used_up() -> None:
    twin = engine(num_gpu_blocks=7, max_model_len=24)
    twin.add("a", prompt_tokens=20, max_tokens=2, prefix=(("a", 20),))
    run(twin)
    assert (twin.pool.free_blocks, twin.pool.usage) == (6, 0.0)
    twin.add("b", prompt_tokens=14, max_tokens=2)
    run(twin)
    again = twin.add("a", prompt_tokens=20, max_tokens=2, prefix=(("a", 20),))
    run(twin)
    assert again.cached_tokens == 8  # b took the one blank block and the last three of a's five


def test_what_was_freed_first_is_overwritten_first() -> None:
    pool = BlockPool(4)
    for name in ("old", "new"):
        (block,) = pool.allocate(1)
        pool.store(block, name)
        pool.free([block])
    pool.allocate(2)
    assert pool.find("old") is None
    assert pool.find("new") is not None


def test_a_found_block_leaves_the_queue_and_comes_back_at_its_end() -> None:
    pool = BlockPool(3)
    blocks = pool.allocate(2)
    for block in blocks:
        pool.store(block, f"content {block}")
    pool.free(blocks)  # the end of a sequence goes first: block 2, then 1
    pool.hold([2])
    pool.free([2])
    pool.allocate(1)
    assert pool.find("content 1") is None
    assert pool.find("content 2") == 2


def test_equal_content_computed_twice_is_found_until_both_are_gone() -> None:
    pool = BlockPool(3)
    blocks = pool.allocate(2)
    for block in blocks:
        pool.store(block, "same")
    pool.free(blocks)
    assert pool.allocate(1) == [2]
    assert pool.find("same") == 1
    pool.allocate(1)
    assert pool.find("same") is None
