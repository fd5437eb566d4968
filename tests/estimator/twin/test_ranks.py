"""Whom the front end lets in, and which data-parallel rank gets whom; nothing here runs a step."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from estimator.twin.cost import StepCost
from estimator.twin.engine import Engine
from estimator.twin.profile import read_profile
from estimator.twin.ranks import FULL_PREFILL, FULL_QUEUE, Gate, QueueLimits, Rank
from estimator.twin.realtime import EngineLoop, Ticket
from estimator.twin.refusals import AskError
from estimator.twin.speech import Speech
from estimator.twin.telemetry import Telemetry
from estimator.twin.vllm_page import PAGE

COST = StepCost(fixed_s=0.01, compute_s_per_token=0, weights_s=0, context_s_per_token=0, sequence_s=0)
TINY = replace(read_profile("tiny"), step_cost=COST)
SPEECH = Speech(prompt_tokens=1000, output_tokens=90, finish_reason="length")


class Front:
    """A gate over some ranks, and the counter of its refusals."""

    def __init__(self, count: int, **limits: int) -> None:
        self.ranks = [self._rank(number) for number in range(count)]
        self.rejections: Counter[str] = Counter()
        self.gate = Gate(self.ranks, QueueLimits(**limits), self.rejections)
        self.leaving: list[Ticket] = []
        self._asked = 0

    def _rank(self, number: int) -> Rank:
        engine = Engine(TINY.limits)
        telemetry = Telemetry(engine, TINY, PAGE, number)
        return Rank(engine=engine, telemetry=telemetry, loop=EngineLoop(engine, COST, telemetry))

    def ask(self, rank: int | None = None) -> int:
        """Submits one; the rank that got it."""
        before = self.queued
        self._asked += 1
        self.gate.submit(str(self._asked), SPEECH, lambda: None, rank=rank)
        return next(number for number, count in enumerate(self.queued) if count > before[number])

    @property
    def queued(self) -> list[int]:
        return [rank.loop.in_flight for rank in self.ranks]

    def step(self, rank: int) -> None:
        engine, loop = self.ranks[rank].engine, self.ranks[rank].loop
        step = engine.step()
        loop._note_scheduled(step, 0.0)
        loop._deliver(engine.settle(step), 1.0)


def told(story: Callable[[], None]) -> None:
    """Within an event loop, which a request's arrival is timed by."""

    async def tell() -> None:
        story()

    asyncio.run(tell())


def test_the_limit_of_requests_counts_the_running_and_refuses_the_next() -> None:
    def story() -> None:
        front = Front(1, max_num_queued_reqs=2)
        ticket = front.gate.submit("a", SPEECH, lambda: None)
        front.ask()
        front.step(0)
        assert len(front.ranks[0].engine.running) == 2
        with pytest.raises(AskError) as refused:
            front.ask()
        assert (refused.value.status, refused.value.message) == (503, FULL_QUEUE)
        assert front.rejections == {"max_num_queued_reqs": 1}
        front.gate.withdraw(ticket)
        front.ask()

    told(story)


def test_the_limit_of_tokens_counts_whole_prompts_until_their_first_token() -> None:
    def story() -> None:
        front = Front(1, max_num_queued_tokens=1001)
        front.ask()
        front.ask()  # 1000 are below the limit: the one that crosses it is still let in
        with pytest.raises(AskError) as refused:
            front.gate.check_admission()
        assert (refused.value.status, refused.value.message) == (503, FULL_PREFILL)
        front.step(0)  # both prompts fit into one step
        front.gate.check_admission()
        assert front.rejections == {"max_num_queued_tokens": 1}

    told(story)


def test_a_limit_holds_over_all_ranks_together() -> None:
    def story() -> None:
        front = Front(2, max_num_queued_reqs=3)
        assert [front.ask() for _ in range(3)] == [0, 1, 0]
        with pytest.raises(AskError):
            front.ask()

    told(story)


def test_equal_ranks_take_turns() -> None:
    def story() -> None:
        front = Front(3)
        assert [front.ask() for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]

    told(story)


def test_idle_ranks_take_turns_too() -> None:
    def story() -> None:
        front = Front(3)
        got = []
        for name in "abcd":
            ticket = front.gate.submit(name, SPEECH, lambda: None)
            got.append(front.queued.index(1))
            front.gate.withdraw(ticket)
            front.gate.look()
        assert got == [0, 1, 2, 0]

    told(story)


def test_between_two_looks_each_request_counts_on_top_of_the_last_one() -> None:
    def story() -> None:
        front = Front(2)
        for rank, count in ((0, 3), (1, 5)):
            for number in range(count):
                ticket = front.gate.submit(f"{rank}-{number}", SPEECH, lambda: None, rank=rank)
                front.leaving.append(ticket)
        front.gate.look()
        for ticket in front.leaving:
            front.gate.withdraw(ticket)
        got = [front.ask() for _ in range(4)]
        assert got[:2] == [0, 0]  # 3 and 5 are still believed to be there
        assert sorted(got[2:]) == [0, 1]

    told(story)


def test_the_emptier_rank_is_chosen_and_a_named_one_before_it() -> None:
    def story() -> None:
        front = Front(2)
        for _ in range(4):
            assert front.ask(rank=1) == 1
        assert [front.ask() for _ in range(3)] == [0, 0, 0]  # known before the next look
        front.gate.look()
        assert front.ask(rank=1) == 1

    told(story)


def test_a_queue_before_a_full_cache_weighs_more_than_one_before_an_empty_one() -> None:
    def story() -> None:
        front = Front(2)
        for _ in range(20):
            front.ask(rank=0)  # 15 of them fill the cache, the others wait
        for _ in range(30):
            front.step(0)
        for _ in range(30):
            front.ask(rank=1)  # more, but before an empty cache
        front.gate.look()
        assert front.ranks[0].engine.pool.usage > 0.9
        assert front.ask() == 1

    told(story)


def test_a_rank_that_nobody_has_is_refused_by_name() -> None:
    gate = Front(2).gate
    gate.check_rank(None)
    gate.check_rank(1)
    for rank in (-1, 2):
        with pytest.raises(AskError, match=rf"data_parallel_rank {rank} is out of range \[0, 2\)"):
            gate.check_rank(rank)
