"""The API server in front of the engine: it delays tokens and merges those it is too slow for."""

from __future__ import annotations

import pytest

from estimator.spec import Lengths, Workload
from estimator.twin.cost import FrontEndCost, ServerCost, StepCost
from estimator.twin.front_end import FrontEnd
from estimator.twin.limits import EngineLimits
from estimator.twin.request import Request, StepClock
from estimator.twin.virtual import ClosedLoop, closed_loop

STEP = StepCost(fixed_s=0.01, compute_s_per_token=0.0, weights_s=0.0, context_s_per_token=0.0, sequence_s=0.0)
LIMITS = EngineLimits(
    num_gpu_blocks=1000, block_size=16, max_num_seqs=64, max_num_batched_tokens=2048, max_model_len=2048
)
LOOP = ClosedLoop(
    users=8,
    until_s=5.0,
    workload=Workload(
        input_tokens=Lengths(kind="constant", tokens=32), output_tokens=Lengths(kind="constant", tokens=32)
    ),
)


def requests(count: int) -> list[Request]:
    return [
        Request(request_id=str(n), prompt_tokens=1, tokens_max=9, known=1, clock=StepClock())
        for n in range(count)
    ]


def test_without_a_cost_every_token_is_there_when_its_step_ends() -> None:
    some = requests(3)
    assert FrontEnd(FrontEndCost()).writes(2.0, some, some) == [2.0, 2.0, 2.0]


def test_chunks_of_a_step_go_out_one_after_the_other() -> None:
    some = requests(3)
    told = FrontEnd(FrontEndCost(step_s=0.1, chunk_s=0.01)).writes(2.0, some, some)
    assert told == pytest.approx([2.11, 2.12, 2.13])


def test_what_comes_while_a_batch_waits_joins_it() -> None:
    """Steps every 0.05 s, and writing one takes 0.12 s: the third batch carries steps three and four."""
    some, front = requests(2), FrontEnd(FrontEndCost(chunk_s=0.06))
    told = [front.writes(at_s, some, some)[-1] for at_s in (0.0, 0.05, 0.1, 0.15, 0.2)]
    assert told == pytest.approx([0.12, 0.24, 0.24, 0.36, 0.36])


def test_a_backlog_is_never_longer_than_two_batches() -> None:
    some, front = requests(4), FrontEnd(FrontEndCost(chunk_s=0.1))
    late = [front.writes(step / 100, some, some)[-1] - step / 100 for step in range(500)]
    assert max(late) <= 0.8 + 1e-9


def test_requests_are_taken_in_one_by_one() -> None:
    front = FrontEnd(FrontEndCost(request_s=0.02, request_cpu_s=0.01))
    assert [front.takes_in(1.0) for _ in range(3)] == pytest.approx([1.02, 1.03, 1.04])


def test_a_front_end_delays_what_clients_see_and_nothing_in_the_engine() -> None:
    alone = closed_loop(LIMITS, STEP, LOOP)
    behind = closed_loop(LIMITS, ServerCost(step=STEP, front_end=FrontEndCost(request_s=0.03)), LOOP)
    assert behind.requests[0].ttft_s == pytest.approx(alone.requests[0].ttft_s + 0.03)
    assert {step.duration_s for step in behind.steps} == {step.duration_s for step in alone.steps}


def test_an_overloaded_front_end_sets_the_pace_of_the_clients() -> None:
    """8 streams of 5 ms a chunk need 40 ms a round, the engine 10 ms a step."""
    slow = closed_loop(LIMITS, ServerCost(step=STEP, front_end=FrontEndCost(chunk_s=0.005)), LOOP)
    last = slow.requests[-1]
    assert last.finish_s - last.arrival_s > closed_loop(LIMITS, STEP, LOOP).requests[-1].finish_s / 16
    assert last.tpot_s < 0.040
