"""Each rule of vLLM's scheduler, one claim a test. Blocks of 4 tokens keep the numbers readable."""

from __future__ import annotations

import pytest

from estimator.spec import SpecError
from estimator.twin.engine import Engine, EngineLimits, Outcome, Step
from estimator.units import ceil_div as held_blocks


def engine(**changes: int) -> Engine:
    limits = {
        "num_gpu_blocks": 101,
        "block_size": 4,
        "max_num_seqs": 16,
        "max_num_batched_tokens": 64,
        "max_model_len": 256,
    }
    return Engine(EngineLimits(**{**limits, **changes}))


def forward(twin: Engine) -> tuple[Step, Outcome]:
    step = twin.step()
    return step, twin.settle(step)


def ids(requests: object) -> list[str]:
    return [request.request_id for request in requests]  # type: ignore[attr-defined]


def test_the_last_prefill_chunk_yields_the_first_output_token() -> None:
    twin = engine(max_num_batched_tokens=16)
    twin.add("a", prompt_tokens=40, max_tokens=2)
    seen = [(step.prefill_tokens, step.decoding, len(outcome.first)) for step, outcome in three_steps(twin)]
    assert seen == [(16, 0, 0), (16, 0, 0), (8, 0, 1)]


def three_steps(twin: Engine) -> list[tuple[Step, Outcome]]:
    return [forward(twin) for _ in range(3)]


def test_a_request_of_n_output_tokens_decodes_n_minus_1_steps_and_holds_what_the_formula_says() -> None:
    twin = engine()
    twin.add("a", prompt_tokens=10, max_tokens=20)
    forward(twin)
    held, decodes = [], []
    while twin.has_work:
        step = twin.step()
        held.append(twin.pool.used_blocks)
        decodes.append(step.decoding)
        twin.settle(step)
    assert decodes == [1] * 19
    assert held == [held_blocks(10 + j, 4) for j in range(1, 20)]


def test_a_finished_request_frees_its_blocks_after_its_last_step_and_not_before() -> None:
    twin = engine()
    twin.add("a", prompt_tokens=4, max_tokens=1)
    step = twin.step()
    assert twin.pool.used_blocks == 1
    assert ids(twin.settle(step).finished) == ["a"]
    assert twin.pool.used_blocks == 0
    assert not twin.has_work


def test_running_requests_get_tokens_before_waiting_ones() -> None:
    twin = engine(max_num_batched_tokens=16)
    twin.add("a", prompt_tokens=4, max_tokens=9)
    forward(twin)
    twin.add("b", prompt_tokens=40, max_tokens=9)
    step, _ = forward(twin)
    assert (step.decoding, step.prefill_tokens) == (1, 15)
    assert ids(step.batch) == ["a", "b"]


def test_one_token_budget_is_shared_and_the_next_prompt_waits_for_the_chunk_before_it() -> None:
    twin = engine(max_num_batched_tokens=16)
    for name in ("a", "b", "c"):
        twin.add(name, prompt_tokens=10, max_tokens=5)
    first, outcome = forward(twin)
    assert ids(first.admitted) == ["a", "b"]  # 10 and 6 of 10 tokens: the budget is gone before c
    assert ids(outcome.emitted) == ["a"]
    second, outcome = forward(twin)
    assert (second.decoding, second.prefill_tokens) == (1, 4 + 10)
    assert ids(outcome.emitted) == ["a", "b", "c"]


def test_no_more_than_max_num_seqs_run() -> None:
    twin = engine(max_num_seqs=2)
    for name in ("a", "b", "c"):
        twin.add(name, prompt_tokens=4, max_tokens=5)
    forward(twin)
    assert (len(twin.running), len(twin.waiting)) == (2, 1)


def test_a_request_is_admitted_only_if_its_whole_prompt_fits_though_a_chunk_would() -> None:
    twin = engine(num_gpu_blocks=12, max_num_batched_tokens=16, max_model_len=44)
    twin.add("a", prompt_tokens=16, max_tokens=8)
    forward(twin)  # a holds 4 of 11 blocks
    twin.add("b", prompt_tokens=32, max_tokens=4)  # needs 8, 7 minus one for a are free; its chunk needs 4
    step, _ = forward(twin)
    assert ids(step.admitted) == []
    assert ids(twin.waiting) == ["b"]


def test_the_output_is_not_reserved_at_admission() -> None:
    twin = engine(num_gpu_blocks=12, max_model_len=44)
    for name in ("a", "b"):
        twin.add(name, prompt_tokens=20, max_tokens=20)  # 5 blocks now, 10 at the end, 11 there are
    step, _ = forward(twin)
    assert ids(step.admitted) == ["a", "b"]


def test_the_first_that_does_not_fit_stops_admission_for_all_behind_it() -> None:
    twin = engine(num_gpu_blocks=12, max_model_len=44)
    twin.add("a", prompt_tokens=20, max_tokens=4)
    twin.add("long", prompt_tokens=40, max_tokens=4)
    twin.add("short", prompt_tokens=4, max_tokens=4)
    step, _ = forward(twin)
    assert ids(step.admitted) == ["a"]
    assert ids(twin.waiting) == ["long", "short"]


def full_cache() -> Engine:
    """Three requests of 8 tokens fill 6 blocks; the next token of each needs a third block."""
    twin = engine(num_gpu_blocks=7, max_model_len=24)
    for name in ("a", "b", "c"):
        twin.add(name, prompt_tokens=8, max_tokens=8)
    forward(twin)
    assert twin.pool.free_blocks == 0
    return twin


def test_a_full_cache_preempts_the_youngest_request() -> None:
    twin = full_cache()
    step, outcome = forward(twin)
    assert ids(step.preempted) == ["c"]
    assert ids(outcome.emitted) == ["a", "b"]
    assert twin.stats.preemptions == 1


def test_a_preempted_request_goes_to_the_head_of_waiting_and_loses_its_blocks_but_not_its_tokens() -> None:
    twin = full_cache()
    late = twin.add("late", prompt_tokens=4, max_tokens=4)
    step, _ = forward(twin)
    victim = step.preempted[0]
    assert list(twin.waiting) == [victim, late]
    assert (victim.computed_tokens, victim.blocks, victim.output_tokens) == (0, [], 1)
    assert victim.preemptions == 1


def test_nothing_is_admitted_in_a_step_that_preempts() -> None:
    twin = full_cache()
    twin.add("late", prompt_tokens=1, max_tokens=4)  # c's blocks are free again, one would do
    step, _ = forward(twin)
    assert step.preempted
    assert not step.admitted


def test_a_request_with_nobody_behind_it_preempts_itself() -> None:
    twin = engine(num_gpu_blocks=7, max_model_len=24)
    twin.add("a", prompt_tokens=11, max_tokens=8)
    twin.add("b", prompt_tokens=12, max_tokens=8)
    forward(twin)  # 3 + 3 blocks: full, and a still has room for one token
    step, outcome = forward(twin)
    assert ids(step.preempted) == ["b"]
    assert ids(outcome.emitted) == ["a"]


def test_a_resumed_request_recomputes_its_output_too_and_continues_where_it_was() -> None:
    twin = full_cache()
    forward(twin)
    victim = twin.waiting[0]
    before = victim.output_tokens
    step = twin.step()
    while victim not in step.admitted:
        twin.settle(step)
        step = twin.step()
    assert victim.computed_tokens == victim.prompt_tokens + before
    twin.settle(step)
    assert victim.output_tokens == before + 1


def test_the_oldest_request_is_never_preempted() -> None:
    twin = engine(num_gpu_blocks=20, max_model_len=60)
    oldest = twin.add("oldest", prompt_tokens=8, max_tokens=50)
    for number in range(12):
        twin.add(f"r{number}", prompt_tokens=8, max_tokens=30)
    while not oldest.ended:
        forward(twin)
    assert oldest.preemptions == 0
    assert twin.stats.preemptions > 0


def test_a_request_ends_at_max_model_len_when_max_tokens_would_exceed_it() -> None:
    twin = engine(max_model_len=32)
    request = twin.add("a", prompt_tokens=30, max_tokens=100)
    while twin.has_work:
        forward(twin)
    assert request.output_tokens == 2
    assert twin.stats.finished == {"length": 1}


def test_a_prompt_that_can_never_fit_is_refused_with_a_sentence() -> None:
    with pytest.raises(SpecError, match=r"needs 8 blocks and the cache has 5; shorten it"):
        engine(num_gpu_blocks=6, max_model_len=64).add("a", prompt_tokens=20, max_tokens=13)
    with pytest.raises(SpecError, match="leaves no room for output within max_model_len 32"):
        engine(max_model_len=32).add("a", prompt_tokens=32, max_tokens=1)


def test_the_last_token_needs_no_slot() -> None:
    twin = engine(num_gpu_blocks=6, max_model_len=64)
    twin.add("a", prompt_tokens=10, max_tokens=11)  # 21 tokens, 20 of them computed: 5 blocks
    while twin.has_work:
        forward(twin)
    assert twin.stats.finished == {"length": 1}


def test_an_abort_in_the_middle_of_a_step_frees_the_blocks_at_once_and_yields_no_token() -> None:
    twin = engine()
    twin.add("a", prompt_tokens=8, max_tokens=8)
    twin.add("b", prompt_tokens=8, max_tokens=8)
    step = twin.step()
    assert twin.abort("a")
    assert twin.pool.used_blocks == 2
    assert ids(twin.settle(step).emitted) == ["b"]
    assert twin.stats.finished == {"abort": 1}


def test_a_waiting_request_can_be_aborted_and_an_unknown_one_is_no_error() -> None:
    twin = engine()
    twin.add("a", prompt_tokens=8, max_tokens=8)
    assert twin.abort("a")
    assert not twin.abort("a")
    assert not twin.has_work


def test_a_prompt_is_counted_once_however_often_it_is_recomputed() -> None:
    twin = full_cache()
    while twin.has_work:
        forward(twin)
    assert twin.stats.preemptions > 0
    assert (twin.stats.prompt_tokens, twin.stats.generation_tokens) == (3 * 8, 3 * 8)


def test_a_batch_that_cannot_give_each_request_a_token_is_refused() -> None:
    with pytest.raises(SpecError, match="max_num_batched_tokens 8 is below max_num_seqs 16"):
        engine(max_num_batched_tokens=8)
