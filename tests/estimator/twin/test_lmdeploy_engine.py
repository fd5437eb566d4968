"""The twin decides what LMDeploy's own scheduler decided, and saturates as it does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lmdeploy_replay import Twin, unpacked

from estimator.engine_spec import LmdeployBackend
from estimator.kv_group import KvGroup
from estimator.spec import SpecError, Workload
from estimator.twin import lmdeploy_page
from estimator.twin.cost import StepCost
from estimator.twin.engine import Engine
from estimator.twin.limits import EngineLimits
from estimator.twin.lmdeploy_engine import LmdeployEngine
from estimator.twin.lmdeploy_limits import LmdeployLimits, limits_under_lmdeploy
from estimator.twin.profile import read_profile
from estimator.twin.request import Step
from estimator.twin.scheduler import new_scheduler
from estimator.twin.telemetry import Telemetry
from estimator.twin.virtual import ClosedLoop, History, closed_loop

FIXTURE = Path(__file__).resolve().parents[2] / "fixtures/lmdeploy/scheduler-0.18.json"
RECORDED = json.loads(FIXTURE.read_text(encoding="utf-8"))["scenarios"]
BACKENDS: tuple[LmdeployBackend, ...] = ("pytorch", "turbomind")
COST = StepCost(
    fixed_s=0.002, compute_s_per_token=5e-5, weights_s=0.01, context_s_per_token=1e-8, sequence_s=0
)
SMALL = LmdeployLimits(
    backend="pytorch",
    num_gpu_blocks=11,
    max_batch_size=8,
    max_prefill_token_num=256,
    session_len=512,
)


def engine_of(backend: LmdeployBackend = "pytorch", **changes: Any) -> LmdeployEngine:
    return LmdeployEngine(replace(SMALL, backend=backend, **changes))


def names(requests: Any) -> list[str]:
    return [request.request_id for request in requests]


def one_pass(engine: LmdeployEngine) -> Step:
    step = engine.step()
    engine.settle(step)
    return step


def drained(engine: LmdeployEngine) -> list[str]:
    """Who finished, in order; fails when the engine does not come to an end."""
    finished: list[str] = []
    for _ in range(20_000):
        if not engine.has_work:
            return finished
        finished += names(engine.settle(engine.step()).finished)
    raise AssertionError(f"{names(engine.waiting)} wait for ever")


@pytest.mark.parametrize("scenario", RECORDED, ids=range(len(RECORDED)))
def test_every_recorded_pass_of_lmdeploys_own_scheduler_is_decided_alike(scenario: dict[str, Any]) -> None:
    twin = Twin(LmdeployLimits(**scenario["limits"]))
    for row in scenario["passes"]:
        events, theirs = unpacked(row)
        assert twin.turn(events) == theirs


def test_the_recording_shows_requests_that_lose_their_place_and_prompts_read_in_chunks() -> None:
    preemptions = chunks = 0
    for scenario in RECORDED:
        twin = Twin(LmdeployLimits(**scenario["limits"]))
        for row in scenario["passes"]:
            events, theirs = unpacked(row)
            twin.turn(events)
            chunks += theirs.prefill_tokens > 0 and not theirs.emitted
        preemptions += twin.engine.stats.preemptions
    assert preemptions >= 10
    assert chunks >= 50


@given(
    backend=st.sampled_from(BACKENDS),
    blocks=st.integers(10, 40),
    max_batch_size=st.integers(1, 8),
    max_prefill_token_num=st.sampled_from((64, 100, 512)),
    state_blocks=st.integers(0, 2),
    requests=st.lists(st.tuples(st.integers(1, 400), st.integers(1, 90)), max_size=14),
    abort_at=st.integers(0, 30),
)
@settings(max_examples=80, deadline=None)
def test_every_request_ends_once_with_all_its_tokens_and_no_block_is_held_twice(
    backend: LmdeployBackend,
    blocks: int,
    max_batch_size: int,
    max_prefill_token_num: int,
    state_blocks: int,
    requests: list[tuple[int, int]],
    abort_at: int,
) -> None:
    engine = engine_of(
        backend,
        num_gpu_blocks=blocks,
        max_batch_size=max_batch_size,
        max_prefill_token_num=max_prefill_token_num,
        state_blocks=state_blocks if backend == "turbomind" else 0,
    )
    made = [engine.add(str(number), *sizes) for number, sizes in enumerate(requests)]
    aborted, finished, passes = 0, 0, 0
    while engine.has_work:
        passes += 1
        assert passes < 20_000
        step = engine.step()
        if passes == abort_at and made and not made[0].ended:
            aborted += engine.abort(made[0].request_id)
        outcome = engine.settle(step)
        finished += len(outcome.finished)
        held = [block for request in (*engine.running, *engine.waiting) for block in request.blocks]
        assert len(held) == len(set(held)) <= engine.pool.used_blocks
        assert engine.pool.used_blocks + engine.pool.free_blocks == engine.limits.usable_blocks
        assert len(engine.running) <= max_batch_size
        assert all(
            request.output_tokens == request.tokens_max - request.prompt_tokens
            for request in outcome.finished
        )
    assert finished + aborted == len(made)
    assert engine.pool.used_blocks == 0
    assert engine.stats.finished.total() == len(made)


def test_the_pytorch_engine_stops_decoding_while_a_prompt_is_read() -> None:
    engine = engine_of()
    engine.add("first", 64, 40)
    one_pass(engine)
    one_pass(engine)
    engine.add("second", 64, 40)
    one_pass(engine)
    assert [(names(step.batch), step.decoding) for step in (one_pass(engine), one_pass(engine))] == [
        (["second"], 0),
        (["first", "second"], 2),
    ]


def test_turbomind_reads_a_prompt_beside_those_that_decode() -> None:
    engine = engine_of("turbomind")
    engine.add("first", 64, 40)
    one_pass(engine)
    one_pass(engine)
    engine.add("second", 64, 40)
    one_pass(engine)
    step = one_pass(engine)
    assert (names(step.batch), step.decoding, step.prefill_tokens) == (["first", "second"], 1, 64)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_request_that_comes_while_a_pass_runs_is_read_in_the_pass_after_next(
    backend: LmdeployBackend,
) -> None:
    engine = engine_of(backend)
    engine.add("first", 64, 40)
    step = engine.step()
    engine.add("second", 64, 40)
    engine.settle(step)
    assert ["second" in names(one_pass(engine).batch) for _ in range(2)] == [False, True]


@pytest.mark.parametrize("backend", BACKENDS)
def test_who_has_finished_is_computed_once_more(backend: LmdeployBackend) -> None:
    engine = engine_of(backend)
    engine.add("short", 64, 1)
    assert names(engine.settle(engine.step()).finished) == ["short"]
    ghost = engine.step()
    assert names(ghost.batch) == ["short"]
    assert not engine.settle(ghost).emitted
    assert not engine.has_work


def test_the_pytorch_engine_takes_blocks_for_sixteen_tokens_ahead() -> None:
    engine = engine_of()
    engine.add("one block and a quarter", 48 + 1, 20)
    engine.step()
    assert engine.pool.used_blocks == 2


def test_who_finds_no_block_rests_and_keeps_its_blocks_until_an_older_one_needs_them() -> None:
    engine = engine_of(num_gpu_blocks=5)  # 4 usable, 2 for each at first
    older = engine.add("older", 110, 60)
    newer = engine.add("newer", 110, 60)
    while not engine.stats.preemptions:
        one_pass(engine)
    assert names(engine.running) == ["older"]
    assert (newer.preemptions, older.preemptions) == (1, 0)
    assert drained(engine) == ["older", "newer"]


def test_in_turbomind_the_last_to_come_gives_its_tail_and_reads_only_that_again() -> None:
    engine = engine_of("turbomind", num_gpu_blocks=4)
    engine.add("older", 120, 60)
    newer = engine.add("newer", 120, 60)
    while not engine.stats.preemptions:
        one_pass(engine)
    assert len(newer.blocks) == 1
    assert names(engine.running) == ["older"]
    read = []
    while engine.has_work:
        step = one_pass(engine)
        read += [step.prefill_tokens] * (step.prefill_tokens > 0)
    assert read[-1] < newer.prompt_tokens + newer.output_tokens - 64 + 1


def test_in_turbomind_a_finished_request_keeps_its_blocks_and_its_place_for_one_more_pass() -> None:
    engine = engine_of("turbomind", max_batch_size=1)
    engine.add("done", 64, 1)
    engine.settle(engine.step())
    engine.add("next", 64, 1)
    ghost = engine.step()
    assert (names(ghost.batch), engine.pool.used_blocks) == (["done"], 2)
    assert "next" in names(engine.waiting)
    engine.settle(ghost)
    assert engine.pool.used_blocks == 0
    assert drained(engine) == ["next"]


def test_turbomind_reads_no_more_prompts_in_a_pass_than_fit_into_session_len() -> None:
    engine = engine_of("turbomind", num_gpu_blocks=20, max_prefill_token_num=1024)
    for name, tokens in (("a", 300), ("b", 212), ("c", 10)):
        engine.add(name, tokens, 5)
    assert [names(one_pass(engine).batch) for _ in range(2)] == [["a", "b"], ["a", "b", "c"]]


def test_turbomind_asks_for_the_blocks_of_a_whole_prompt_though_it_reads_a_chunk() -> None:
    engine = engine_of("turbomind", max_prefill_token_num=56)  # and max_batch_size more
    engine.add("long", 500, 10)
    assert engine.step().prefill_tokens == 64
    assert engine.pool.used_blocks == 8


def test_the_pytorch_engine_asks_for_the_blocks_of_the_next_chunk_alone() -> None:
    engine = engine_of(max_prefill_token_num=64)
    engine.add("long", 500, 10)
    step = engine.step()
    assert (step.prefill_tokens, engine.pool.used_blocks) == (64, 2)  # the next is decided already


def test_a_short_prompt_overtakes_a_long_one_in_the_pytorch_engine() -> None:
    engine = engine_of(max_prefill_token_num=64)
    engine.add("long", 400, 1)
    engine.add("short", 10, 1)
    assert drained(engine) == ["short", "long"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_beyond_the_handles_of_the_api_requests_wait_outside_the_scheduler(backend: LmdeployBackend) -> None:
    engine = engine_of(backend, max_batch_size=2)
    for name in "abc":
        engine.add(name, 10, 5)
    one_pass(engine)
    assert names(engine.waiting)[-1] == "c"
    assert engine.abort("c")
    assert engine.abort("a")
    assert not engine.abort("a")
    assert drained(engine) == ["b"]
    assert engine.stats.finished == {"length": 1, "abort": 2}


@pytest.mark.parametrize("backend", BACKENDS)
def test_concurrency_stays_at_what_the_pool_holds_however_many_users_come(backend: LmdeployBackend) -> None:
    limits = replace(SMALL, backend=backend, num_gpu_blocks=101, max_batch_size=128, session_len=4096)
    workload = Workload.constant(300, 340)  # 5 blocks at first, 10 in the end

    def run(users: int) -> History:
        loop = ClosedLoop(users=users, until_s=35.0, workload=workload)
        return closed_loop(limits, COST, loop).between(15.0, 35.0)

    light, full, crowded = run(5), run(20), run(40)
    assert light.mean(lambda sample: sample.running) == pytest.approx(5, abs=0.5)
    assert light.preemptions == 0
    plateau = full.mean(lambda sample: sample.running)
    assert 100 / 10 < plateau < 100 / 5
    assert crowded.mean(lambda sample: sample.running) == pytest.approx(plateau, rel=0.1)
    assert crowded.mean(lambda sample: sample.waiting) > 20
    assert crowded.preemptions > 0


def test_the_page_shows_the_pytorch_engines_reserved_block_as_used() -> None:
    engine = engine_of()
    telemetry = Telemetry(engine, read_profile("tiny"), lmdeploy_page.PAGE)
    usage = next(one for one in lmdeploy_page.FAMILIES if one.name == "lmdeploy:gpu_cache_usage_perc")
    assert usage.read(telemetry) == pytest.approx(1 / 11)
    engine.add("three", 150, 30)
    engine.step()
    telemetry.snapshot = telemetry.state()
    assert usage.read(telemetry) == pytest.approx((1 + 3) / 11)


def test_the_limits_choose_the_scheduler() -> None:
    vllm = EngineLimits(
        num_gpu_blocks=11, block_size=64, max_num_seqs=8, max_num_batched_tokens=256, max_model_len=512
    )
    assert isinstance(new_scheduler(vllm), Engine)
    for backend in BACKENDS:
        scheduler = new_scheduler(limits_under_lmdeploy(vllm, backend))
        assert isinstance(scheduler, LmdeployEngine)
        assert scheduler.pool.usable_blocks == 10


def test_a_window_is_refused_and_a_state_takes_the_place_of_blocks() -> None:
    full = KvGroup(kind="full", block_size=64, layers=1, page_bytes=1)
    state = KvGroup(kind="state", block_size=64, layers=1, page_bytes=1, state_blocks=3)
    window = KvGroup(kind="window", block_size=64, layers=1, page_bytes=1, reach_tokens=129)
    vllm = EngineLimits(
        num_gpu_blocks=11, block_size=64, max_num_seqs=8, max_num_batched_tokens=256, max_model_len=512
    )
    limits = limits_under_lmdeploy(replace(vllm, groups=(full, state)), "turbomind")
    engine = LmdeployEngine(limits)
    engine.add("a", 64, 1)
    engine.step()
    assert engine.pool.used_blocks >= 1 + 3
    with pytest.raises(SpecError, match="does not model LMDeploy's window cache"):
        limits_under_lmdeploy(replace(vllm, groups=(window,)), "pytorch")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"max_batch_size": 0}, "max_batch_size must be at least 1"),
        ({"prefill_interval": 0}, "prefill_interval must be at least 1"),
        ({"num_gpu_blocks": 1}, "leaves no block"),
        ({"num_gpu_blocks": 2}, "at least 3"),
    ],
)
def test_limits_that_make_no_engine_are_refused(change: dict[str, int], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        replace(SMALL, **change)  # type: ignore[arg-type]


def test_a_request_that_could_never_finish_is_refused_in_one_sentence() -> None:
    with pytest.raises(SpecError, match="session_len 512"):
        engine_of().add("a", 512, 1)
    with pytest.raises(SpecError, match="needs 8 blocks and the cache has 4"):
        engine_of("turbomind", num_gpu_blocks=4).add("a", 400, 200)
    engine = engine_of(num_gpu_blocks=6)
    assert engine.add("a", 200, 400).tokens_max == 4 * 64  # the PyTorch engine holds one block back
    with pytest.raises(SpecError, match="in use"):
        engine.add("a", 5, 5)
