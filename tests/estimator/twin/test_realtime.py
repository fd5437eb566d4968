"""The real clock, tested on an event loop whose time is counted and whose every wake-up comes late."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest

from estimator.twin.cost import StepCost
from estimator.twin.engine import Engine
from estimator.twin.limits import EngineLimits
from estimator.twin.profile import read_profile
from estimator.twin.realtime import LAG_MAX_S, EngineLoop, Ticket
from estimator.twin.speech import Speech
from estimator.twin.telemetry import Telemetry
from estimator.twin.vllm_page import PAGE

STEP_S = 0.01
EVEN = StepCost(fixed_s=STEP_S, compute_s_per_token=0, weights_s=0, context_s_per_token=0, sequence_s=0)
TINY = replace(read_profile("tiny"), step_cost=EVEN)


class LateLoop(asyncio.SelectorEventLoop):
    """Time passes only by waiting, and each wait ends `late_s` after it should."""

    def __init__(self, late_s: float) -> None:
        self.now_s = 1000.0
        super().__init__(_CountingSelector(self, late_s))

    def time(self) -> float:
        return self.now_s


class _CountingSelector(selectors.SelectSelector):
    def __init__(self, loop: LateLoop, late_s: float) -> None:
        super().__init__()
        self._loop, self._late_s = loop, late_s

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(0)
        if not ready and timeout:
            self._loop.now_s += timeout + self._late_s
        return ready


def on_late_loop(
    late_s: float,
    story: Callable[[EngineLoop, Engine], Coroutine[Any, Any, None]],
    limits: EngineLimits = TINY.limits,
) -> None:
    async def tell() -> None:
        engine = Engine(limits)
        twin = EngineLoop(engine, EVEN, Telemetry(engine, TINY, PAGE))
        stepping = asyncio.create_task(twin.run())
        await story(twin, engine)
        stepping.cancel()

    with asyncio.Runner(loop_factory=lambda: LateLoop(late_s)) as runner:
        runner.run(tell())


def submitted(
    twin: EngineLoop, name: str, prompt_tokens: int, output_tokens: int
) -> tuple[Ticket, asyncio.Event]:
    """A ticket and the event that is set whenever it gained tokens."""
    news = asyncio.Event()
    speech = Speech(prompt_tokens=prompt_tokens, output_tokens=output_tokens, finish_reason="length")
    return twin.submit(name, speech, news.set), news


def now_s() -> float:
    return asyncio.get_running_loop().time()


def test_late_wake_ups_do_not_add_up() -> None:
    async def story(twin: EngineLoop, _engine: Engine) -> None:
        started_s = now_s()
        ticket, ticket_news = submitted(twin, "a", 8, 100)
        while not ticket.finished:
            await ticket_news.wait()
            ticket_news.clear()
        assert now_s() - started_s == pytest.approx(100 * STEP_S + 0.004)

    on_late_loop(0.004, story)


def test_a_machine_too_slow_for_the_steps_looks_slow_and_never_bursts() -> None:
    async def story(twin: EngineLoop, _engine: Engine) -> None:
        ticket, ticket_news = submitted(twin, "a", 8, 8)
        gaps, before_s = [], now_s()
        while not ticket.finished:
            await ticket_news.wait()
            ticket_news.clear()
            gaps.append(now_s() - before_s)
            before_s = now_s()
        assert min(gaps) == pytest.approx(STEP_S + 2 * LAG_MAX_S)

    on_late_loop(2 * LAG_MAX_S, story)


def test_a_slow_reader_takes_several_tokens_at_once_and_loses_none() -> None:
    async def story(twin: EngineLoop, _engine: Engine) -> None:
        ticket, _ = submitted(twin, "a", 8, 10)
        await asyncio.sleep(4.5 * STEP_S)
        assert ticket.take() == 4
        assert ticket.take() == 0
        await asyncio.sleep(20 * STEP_S)
        assert ticket.finished
        assert ticket.take() == 6

    on_late_loop(0.0, story)


def test_an_idle_engine_waits_and_starts_with_the_next_request() -> None:
    async def story(twin: EngineLoop, engine: Engine) -> None:
        await asyncio.sleep(50.0)
        _, ticket_news = submitted(twin, "late", 8, 1)
        came_s = now_s()
        await ticket_news.wait()
        assert now_s() - came_s == pytest.approx(STEP_S)
        assert not engine.has_work

    on_late_loop(0.0, story)


def test_a_request_that_comes_during_a_step_joins_the_next_one() -> None:
    async def story(twin: EngineLoop, _engine: Engine) -> None:
        first, _ = submitted(twin, "a", 8, 50)
        await asyncio.sleep(2.5 * STEP_S)
        second, second_news = submitted(twin, "b", 8, 1)
        came_s = now_s()
        await second_news.wait()
        assert now_s() - came_s == pytest.approx(1.5 * STEP_S)
        assert second.scheduled_s == pytest.approx(came_s + 0.5 * STEP_S)
        assert not first.finished

    on_late_loop(0.0, story)


def test_a_pipeline_of_many_stages_answers_with_one_step_decided_ahead() -> None:
    async def story(twin: EngineLoop, engine: Engine) -> None:
        ticket, news = submitted(twin, "a", 8, 5)
        while not ticket.finished:
            await news.wait()
            news.clear()
        assert ticket.fresh_tokens == 5
        assert not engine.has_work

    on_late_loop(0.0, story, replace(TINY.limits, steps_in_flight=4))


def test_a_withdrawn_request_is_gone_at_once_and_withdrawing_twice_is_harmless() -> None:
    async def story(twin: EngineLoop, engine: Engine) -> None:
        ticket, _ = submitted(twin, "a", 8, 50)
        await asyncio.sleep(2.5 * STEP_S)
        twin.withdraw(ticket)
        assert engine.pool.used_blocks == 0
        twin.withdraw(ticket)
        await asyncio.sleep(5 * STEP_S)
        assert ticket.take() == 2

    on_late_loop(0.0, story)


def test_a_time_scale_stretches_every_step_also_while_it_runs() -> None:
    async def story(twin: EngineLoop, _engine: Engine) -> None:
        twin.time_scale = 2.0
        ticket, news = submitted(twin, "a", 8, 4)
        gaps, before_s = [], now_s()
        while not ticket.finished:
            await news.wait()
            news.clear()
            gaps.append(now_s() - before_s)
            before_s = now_s()
            twin.time_scale = 3.0  # the step under way keeps its length
        assert gaps == pytest.approx([2 * STEP_S, 2 * STEP_S, 3 * STEP_S, 3 * STEP_S])

    on_late_loop(0.0, story)


def test_lateness_is_told_in_the_histogram() -> None:
    async def story(twin: EngineLoop, _engine: Engine) -> None:
        ticket, news = submitted(twin, "a", 8, 10)
        while not ticket.finished:
            await news.wait()
            news.clear()
        telemetry = twin._telemetry
        assert dict(telemetry.lateness.cumulative)["0.003"] == 0
        assert dict(telemetry.lateness.cumulative)["0.005"] == 10

    on_late_loop(0.004, story)


def test_a_hung_engine_takes_requests_and_never_steps() -> None:
    async def story(twin: EngineLoop, engine: Engine) -> None:
        twin.hung = True
        ticket, _ = submitted(twin, "a", 8, 10)
        await asyncio.sleep(100.0)
        assert (ticket.fresh_tokens, len(engine.waiting)) == (0, 1)

    on_late_loop(0.0, story)
