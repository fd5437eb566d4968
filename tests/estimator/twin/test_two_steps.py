"""Two steps in flight, vLLM's default on a GPU: a step is made up before the tokens of the last one exist."""

from __future__ import annotations

from collections import deque

import pytest

from estimator.kv_group import KvGroup
from estimator.twin.engine import Engine, EngineLimits, Outcome, Step


def engine(**changes: object) -> Engine:
    limits = {
        "num_gpu_blocks": 101,
        "block_size": 4,
        "max_num_seqs": 16,
        "max_num_batched_tokens": 64,
        "max_model_len": 256,
        "steps_in_flight": 2,
    }
    return Engine(EngineLimits(**{**limits, **changes}))  # type: ignore[arg-type]


class Pipeline:
    """Keeps one step under way while the next is made up, as vLLM's step_with_batch_queue does."""

    def __init__(self, twin: Engine) -> None:
        self.twin = twin
        self.under_way: deque[Step] = deque()

    def turn(self) -> tuple[Step, Outcome]:
        """Makes up a step and settles the one before it; the first call makes up two."""
        while len(self.under_way) < 2:
            step = self.twin.step()
            self.under_way.append(step)
        return step, self.twin.settle(self.under_way.popleft())

    def run(self) -> None:
        while self.twin.has_work:
            self.turn()


def ids(requests: object) -> list[str]:
    return [request.request_id for request in requests]  # type: ignore[attr-defined]


def test_the_next_step_is_made_up_before_the_first_token_is_known() -> None:
    twin = engine()
    request = twin.add("a", prompt_tokens=8, max_tokens=5)
    read, decode = twin.step(), twin.step()
    assert (read.prefill_tokens, decode.decoding, decode.context_tokens) == (8, 1, 9)
    assert (request.output_tokens, request.computed_tokens) == (0, 9)
    assert ids(twin.settle(read).first) == ["a"]
    assert (request.output_tokens, request.computed_tokens) == (1, 9)


def test_a_request_that_waits_for_its_last_token_gets_no_more_and_keeps_its_place_and_blocks() -> None:
    twin = engine(max_num_seqs=1)
    for name in ("a", "b"):
        twin.add(name, prompt_tokens=8, max_tokens=1)
    last, idle = twin.step(), twin.step()
    assert (ids(last.batch), ids(idle.batch)) == (["a"], [])
    assert (ids(twin.running), twin.pool.used_blocks) == (["a"], 2)
    assert ids(twin.settle(last).finished) == ["a"]
    assert (ids(twin.running), twin.pool.used_blocks) == ([], 0)
    assert ids(twin.step().batch) == ["b"]


def test_an_answer_of_n_tokens_takes_as_many_steps_as_with_one_step_in_flight() -> None:
    batches = []
    for steps in (1, 2):
        twin = engine(steps_in_flight=steps)
        twin.add("a", prompt_tokens=10, max_tokens=20)
        under_way: deque[Step] = deque()
        while twin.has_work:
            under_way.append(twin.step())
            batches.append((steps, len(under_way[-1].batch)))
            if len(under_way) == steps:
                twin.settle(under_way.popleft())
    assert batches.count((1, 1)) == batches.count((2, 1)) == 20


def test_a_third_step_must_wait() -> None:
    twin = engine()
    twin.add("a", prompt_tokens=8, max_tokens=5)
    first = twin.step()
    twin.step()
    with pytest.raises(RuntimeError, match="2 steps are under way"):
        twin.step()
    twin.settle(first)
    twin.step()
    with pytest.raises(RuntimeError, match="1 steps are under way"):
        [one_in_flight.step() for one_in_flight in [engine(steps_in_flight=1)] * 2]


def test_the_token_of_a_request_preempted_meanwhile_is_delivered_and_kept() -> None:
    pipeline = Pipeline(engine(num_gpu_blocks=5, max_model_len=16))
    for name in ("a", "b"):
        pipeline.twin.add(name, prompt_tokens=8, max_tokens=6)
    step, outcome = pipeline.turn()
    assert ids(step.preempted) == ["b"]
    assert ids(outcome.emitted) == ["a", "b"]
    assert [(r.output_tokens, r.computed_tokens) for r in pipeline.twin.waiting] == [(1, 0)]
    pipeline.run()
    assert pipeline.twin.stats.generation_tokens == 12


def test_a_request_preempted_while_its_last_token_is_under_way_ends_in_the_waiting_queue() -> None:
    pipeline = Pipeline(engine(num_gpu_blocks=5, max_model_len=16))
    pipeline.twin.add("a", prompt_tokens=8, max_tokens=6)
    pipeline.twin.add("b", prompt_tokens=8, max_tokens=1)
    step, outcome = pipeline.turn()
    assert (ids(step.preempted), ids(outcome.finished)) == (["b"], ["b"])
    assert not pipeline.twin.waiting
    assert pipeline.twin.stats.finished["length"] == 1


def test_one_that_waits_for_its_last_token_behind_one_without_a_block_is_not_counted() -> None:
    twin = engine(num_gpu_blocks=4, max_model_len=12, policy="priority")
    twin.add("a", prompt_tokens=3, max_tokens=6, priority=2)
    first = twin.step()
    twin.add("b", prompt_tokens=8, max_tokens=1, priority=0)
    assert ids(twin.step().batch) == ["a", "b"]
    twin.settle(first)
    step = twin.step()
    assert (ids(step.preempted), step.batch, step.decoding) == (["a"], (), 0)


def test_an_abort_takes_a_request_out_of_both_steps_under_way() -> None:
    twin = engine()
    for name in ("a", "b"):
        twin.add(name, prompt_tokens=8, max_tokens=5)
    steps = [twin.step(), twin.step()]
    twin.abort("b")
    assert twin.pool.used_blocks == 3
    assert [ids(twin.settle(step).emitted) for step in steps] == [["a"], ["a"]]


def test_an_aborted_request_that_had_lost_its_blocks_gets_no_token_either() -> None:
    twin = engine(num_gpu_blocks=5, max_model_len=16)
    for name in ("a", "b"):
        twin.add(name, prompt_tokens=8, max_tokens=6)
    read, decode = twin.step(), twin.step()
    assert ids(decode.preempted) == ["b"]
    twin.abort("b")
    assert ids(twin.settle(read).emitted) == ["a"]


def test_a_window_keeps_what_the_step_under_way_still_reads() -> None:
    window = KvGroup(kind="window", block_size=4, layers=1, page_bytes=0, reach_tokens=4)
    held = {}
    for steps in (1, 2):
        twin = engine(steps_in_flight=steps, groups=(window,), max_num_batched_tokens=16)
        twin.add("a", prompt_tokens=48, max_tokens=1)
        first = twin.step()
        if steps == 1:
            twin.settle(first)
        twin.step()
        held[steps] = twin.pool.used_blocks
    # 16 tokens read and 16 to read are 8 blocks; of settled tokens, 16 - 4 + 1 are out of sight.
    assert held == {1: 8 - 3, 2: 8}


def test_a_block_of_an_answer_can_be_found_only_when_its_tokens_are_known() -> None:
    shared, found = (("talk", 40),), {}
    for steps in (1, 2):
        twin = engine(steps_in_flight=steps, enable_prefix_caching=True)
        twin.add("a", prompt_tokens=7, max_tokens=9, prefix=shared)
        first = twin.step()
        if steps == 1:
            twin.settle(first)
        again = twin.add("b", prompt_tokens=12, max_tokens=2, prefix=shared)
        assert twin.step().admitted == (again,)  # a computes token 8 in it, which is the first of its answer
        found[steps] = again.cached_tokens
    assert found == {1: 8, 2: 4}


def test_the_last_block_of_an_answer_is_kept_for_others_though_no_later_step_stores_it() -> None:
    pipeline = Pipeline(engine(enable_prefix_caching=True))
    pipeline.twin.add("a", prompt_tokens=6, max_tokens=3, prefix=(("talk", 40),))
    pipeline.run()
    again = pipeline.twin.add("b", prompt_tokens=12, max_tokens=2, prefix=(("talk", 40),))
    pipeline.run()
    assert again.cached_tokens == 8  # 6 + 3 tokens, of which the last is never computed
