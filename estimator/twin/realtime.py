"""The engine under the real clock: one task that steps, waits until the step would be over, and delivers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from estimator.twin.cost import StepCost
from estimator.twin.engine import Outcome, Request, Step
from estimator.twin.pace import Pipeline, step_duration_s
from estimator.twin.scheduler import Scheduler
from estimator.twin.speech import Speech
from estimator.twin.telemetry import RequestCounts, RequestTimes, Telemetry

LAG_MAX_S: Final = 0.25
"""Behind by more than this the clock starts anew: a machine too slow must look slow, never burst."""


@dataclass(slots=True, kw_only=True, eq=False)
class Ticket:
    """One request under way: the engine loop fills it, its HTTP handler empties it."""

    request: Request
    speech: Speech
    max_tokens: int
    on_tokens: Callable[[], None]
    """Called within the engine's turn whenever there are new tokens; it must not wait."""
    arrived_s: float
    scheduled_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None
    taken_tokens: int = 0
    finished: bool = False

    @property
    def fresh_tokens(self) -> int:
        """Tokens that came since the last `take`."""
        return self.request.output_tokens - self.taken_tokens

    def take(self) -> int:
        """The fresh tokens, which are then no longer so; several when the reader was slow, as in vLLM."""
        fresh = self.request.output_tokens - self.taken_tokens
        self.taken_tokens += fresh
        return fresh


def _nobody_listens() -> None:
    """Instead of the reader of a ticket that was withdrawn."""


class EngineLoop:
    """Owns the engine; everything happens on one event loop, so nothing needs a lock."""

    def __init__(
        self, engine: Scheduler, cost: StepCost, telemetry: Telemetry, *, time_scale: float = 1.0
    ) -> None:
        self.time_scale = time_scale
        """Wall seconds per modelled second; may change while it runs."""
        self.hung = False
        """A hung engine finishes the step it is in and starts no other."""
        self._engine = engine
        self._cost = cost
        self._telemetry = telemetry
        self._tickets: dict[str, Ticket] = {}
        self._work = asyncio.Event()

    @property
    def in_flight(self) -> int:
        """Requests that have not finished."""
        return len(self._tickets)

    @property
    def prefilling_tokens(self) -> int:
        """Prompt tokens of those that have no token yet; as in vLLM a prompt counts whole until its end."""
        waiting = [one.request for one in self._tickets.values() if one.first_token_s is None]
        return sum([request.prompt_tokens for request in waiting])

    def submit(
        self, request_id: str, speech: Speech, on_tokens: Callable[[], None], *, max_tokens: int = 0
    ) -> Ticket:
        """Queues a request; max_tokens is what its client allowed, for the histogram alone.

        Raises SpecError when it could never finish.
        """
        ticket = Ticket(
            request=self._engine.add(
                request_id, speech.prompt_tokens, speech.output_tokens, prefix=speech.prefix
            ),
            speech=speech,
            max_tokens=max_tokens or speech.output_tokens,
            on_tokens=on_tokens,
            arrived_s=asyncio.get_running_loop().time(),
        )
        self._tickets[request_id] = ticket
        self._work.set()
        return ticket

    def withdraw(self, ticket: Ticket) -> None:
        """Its reader is gone: the blocks are free at once. One that has finished only lets go of its reader.

        Reader and ticket know each other. A pair that stayed tied would wait for the cycle collector, which
        the server lets run once in thousands of answers.
        """
        self._engine.abort(ticket.request.request_id)
        self._tickets.pop(ticket.request.request_id, None)
        ticket.on_tokens = _nobody_listens

    async def run(self) -> None:
        """Steps for ever; cancel it to stop. Deadlines are absolute, so late wake-ups do not add up."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time()
        pipeline = Pipeline(self._engine)
        while True:
            if self.hung or not pipeline.is_busy:
                self._work.clear()
                await self._work.wait()
                deadline_s = loop.time()
                continue
            if loop.time() - deadline_s > LAG_MAX_S:
                deadline_s = loop.time()
            for made_up in pipeline.fill():
                self._note_scheduled(made_up, deadline_s)
            step = pipeline.oldest()
            deadline_s += step_duration_s(self._cost, step) * self.time_scale
            # Also when late: the readers must get their turn between two steps.
            await asyncio.sleep(max(0.0, deadline_s - loop.time()))
            self._deliver(self._engine.settle(step), loop.time())
            self._telemetry.lateness.observe(max(0.0, loop.time() - deadline_s))

    def _note_scheduled(self, step: Step, now_s: float) -> None:
        for request in step.admitted:
            ticket = self._tickets[request.request_id]
            if ticket.scheduled_s is None:  # a resumed request keeps its first time, as in vLLM
                ticket.scheduled_s = max(now_s, ticket.arrived_s)

    def _deliver(self, outcome: Outcome, now_s: float) -> None:
        telemetry = self._telemetry
        for request in outcome.first:
            ticket = self._tickets[request.request_id]
            ticket.first_token_s = now_s
            telemetry.cached_tokens += request.cached_tokens
            telemetry.observe("ttft", now_s - ticket.arrived_s)
        gaps: Counter[float] = Counter()  # of a step most gaps are the same to the bit
        tickets = [self._tickets[request.request_id] for request in outcome.emitted]
        for before_s, count in Counter(ticket.last_token_s for ticket in tickets).items():
            if before_s is not None:
                gaps[now_s - before_s] += count
        for ticket in tickets:
            ticket.last_token_s = now_s
        for request in outcome.finished:
            self._finish(self._tickets.pop(request.request_id))
        for ticket in tickets:
            ticket.on_tokens()
        for gap_s, count in gaps.items():
            telemetry.observe("itl", gap_s, count)
            telemetry.observe("tpot", gap_s, count)
        prompts_tokens = sum(request.prompt_tokens for request in outcome.first)
        telemetry.observe("iteration", prompts_tokens + len(outcome.emitted))

    def _finish(self, ticket: Ticket) -> None:
        ticket.finished = True
        assert ticket.scheduled_s is not None
        assert ticket.first_token_s is not None
        assert ticket.last_token_s is not None
        times = RequestTimes(
            arrived_s=ticket.arrived_s,
            scheduled_s=ticket.scheduled_s,
            first_token_s=ticket.first_token_s,
            last_token_s=ticket.last_token_s,
        )
        request = ticket.request
        counts = RequestCounts(
            prompt_tokens=request.prompt_tokens,
            output_tokens=request.output_tokens,
            max_tokens=ticket.max_tokens,
            preemptions=request.preemptions,
            finish_reason=ticket.speech.finish_reason,
            cached_tokens=request.cached_tokens,
        )
        self._telemetry.finished(times, counts)
