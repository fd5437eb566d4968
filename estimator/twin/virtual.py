"""The engine under a virtual clock: arrivals in, records out, as fast as the machine can count.

A closed loop of users gives the concurrency a load test would set; arrivals (estimator/twin/arrivals.py) give
the traffic of an open one.
Both are deterministic: the same seed gives the same history.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from estimator.spec import Workload
from estimator.twin.arrivals import Arrival
from estimator.twin.cost import ServerCost, StepCost
from estimator.twin.engine import Request, Step
from estimator.twin.front_end import FrontEnd
from estimator.twin.pace import Pipeline, step_duration_s
from estimator.twin.request import Prefix
from estimator.twin.scheduler import SchedulerLimits, new_scheduler

__all__ = [
    "Arrival",
    "ClosedLoop",
    "History",
    "RequestOutcome",
    "StepSample",
    "VirtualServer",
    "closed_loop",
    "open_loop",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedLoop:
    """`users` that each send, wait for the last token, think, and send again until `until_s`.

    They start evenly over `ramp_s`. No request starts at or after until_s; those under way then finish.
    """

    users: int
    until_s: float
    workload: Workload
    seed: int = 1
    think_s: float = 0.0
    ramp_s: float = 0.0
    prefix: Prefix = ()
    """The beginning that all prompts share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOutcome:
    """One finished request as its client saw it; times are seconds on the virtual clock."""

    request_id: str
    arrival_s: float
    first_token_s: float
    finish_s: float
    prompt_tokens: int
    output_tokens: int
    preemptions: int

    @property
    def ttft_s(self) -> float:
        return self.first_token_s - self.arrival_s

    @property
    def tpot_s(self) -> float:
        """Mean time between two of its tokens; 0 for an answer of one token."""
        return (self.finish_s - self.first_token_s) / max(1, self.output_tokens - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSample:
    """The state while one step ran, from `at_s` on for `duration_s`."""

    at_s: float
    duration_s: float
    running: int
    waiting: int
    kv_usage: float
    preempted: int
    tokens: int
    """Computed in it: of prompts, and one for each that decodes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What happened: requests in order of finishing, one sample a step."""

    requests: tuple[RequestOutcome, ...]
    steps: tuple[StepSample, ...]

    def between(self, start_s: float, end_s: float) -> History:
        """The part whose steps start, and whose requests finish, within [start_s, end_s)."""
        return History(
            requests=tuple(r for r in self.requests if start_s <= r.finish_s < end_s),
            steps=tuple(s for s in self.steps if start_s <= s.at_s < end_s),
        )

    @property
    def preemptions(self) -> int:
        return sum(sample.preempted for sample in self.steps)

    def mean(self, quantity: Callable[[StepSample], float]) -> float:
        """Mean over busy time, each step weighted by how long it lasted; ValueError without a step."""
        total_s = sum(sample.duration_s for sample in self.steps)
        if total_s == 0.0:
            raise ValueError("no step to average over")
        return sum(quantity(sample) * sample.duration_s for sample in self.steps) / total_s


def closed_loop(limits: SchedulerLimits, cost: StepCost | ServerCost, loop: ClosedLoop) -> History:
    """Raises SpecError when a drawn request could never fit."""
    rng = random.Random(loop.seed)  # noqa: S311  (a simulation, not a secret)

    def ask(at_s: float) -> Iterable[Arrival]:
        if at_s < loop.until_s:
            yield Arrival(
                at_s=at_s,
                prompt_tokens=loop.workload.input_tokens.at(rng.random()),
                output_tokens=loop.workload.output_tokens.at(rng.random()),
                prefix=loop.prefix,
            )

    starts = [loop.ramp_s * user / loop.users for user in range(loop.users)]
    first = [arrival for at_s in starts for arrival in ask(at_s)]
    return VirtualServer(limits, cost).run(first, lambda now_s: ask(now_s + loop.think_s))


def open_loop(limits: SchedulerLimits, cost: StepCost | ServerCost, arrivals: Iterable[Arrival]) -> History:
    """Every arrival at its time, whatever the server does; ends when the last has finished."""
    return VirtualServer(limits, cost).run(arrivals, lambda _: ())


class VirtualServer:
    """One engine behind one front end, one clock that jumps, and the rows they leave.

    `send` and `turn` let a caller change its mind about the load while the server runs; `run` is their loop.
    """

    def __init__(self, limits: SchedulerLimits, cost: StepCost | ServerCost) -> None:
        server = cost if isinstance(cost, ServerCost) else ServerCost(step=cost)
        self.engine = new_scheduler(limits)
        self.cost = server.step
        self.front_end = FrontEnd(server.front_end)
        self.now_s = 0.0
        self.requests: list[RequestOutcome] = []
        self.steps: list[StepSample] = []
        self._sent_s: dict[str, float] = {}
        self._first_s: dict[str, float] = {}
        self._made = 0
        # The running number keeps arrivals of the same instant in the order they were made.
        self._sent: list[tuple[float, int, Arrival]] = []
        self._queue: list[tuple[float, int, Arrival]] = []
        """What the front end has taken in, by when the engine gets it."""
        self._pipeline = Pipeline(self.engine)

    @property
    def has_work(self) -> bool:
        return bool(self._sent or self._queue) or self._pipeline.is_busy

    def run(self, arrivals: Iterable[Arrival], after: Callable[[float], Iterable[Arrival]]) -> History:
        """`after(finish_s)` names the arrivals a finished request brings about."""
        for arrival in arrivals:
            self.send(arrival)
        while self.has_work:
            for finish_s in self.turn():
                for arrival in after(finish_s):
                    self.send(arrival)
        return History(requests=tuple(self.requests), steps=tuple(self.steps))

    def send(self, arrival: Arrival) -> str:
        """The id under which its outcome appears. An arrival of the past counts from then, but comes now."""
        request_id = f"request-{self._made}"
        heapq.heappush(self._sent, (arrival.at_s, self._made, arrival))
        self._made += 1
        return request_id

    def first_token_s(self, request_id: str) -> float | None:
        """When the first token of a request under way reached its client; None before."""
        return self._first_s.get(request_id)

    def turn(self) -> list[float]:
        """The next step, or the wait for the next arrival; when its finished requests were over.

        Call it only while has_work."""
        sent, queue = self._sent, self._queue
        if not self._pipeline.is_busy:
            self.now_s = max(self.now_s, min([heap[0][0] for heap in (sent, queue) if heap]))
        while sent and sent[0][0] <= self.now_s:
            at_s, number, arrival = heapq.heappop(sent)
            heapq.heappush(queue, (self.front_end.takes_in(at_s), number, arrival))
        while queue and queue[0][0] <= self.now_s:
            _, number, arrival = heapq.heappop(queue)
            self._add(f"request-{number}", arrival)
        return self._one_step() if self._pipeline.is_busy else []

    def _add(self, request_id: str, arrival: Arrival) -> None:
        self.engine.add(
            request_id,
            arrival.prompt_tokens,
            arrival.output_tokens,
            priority=arrival.priority,
            prefix=arrival.prefix,
        )
        self._sent_s[request_id] = arrival.at_s

    def _one_step(self) -> list[float]:
        """Runs a step to its end; when the requests that finished with it were over for their clients."""
        self._pipeline.fill()
        step = self._pipeline.oldest()
        duration_s = step_duration_s(self.cost, step)
        self.steps.append(self._sample(step, duration_s))
        self.now_s += duration_s
        outcome = self.engine.settle(step)
        told = self.front_end.writes(self.now_s, outcome.emitted, (*outcome.first, *outcome.finished))
        first_s, finish_s = told[: len(outcome.first)], told[len(outcome.first) :]
        for request, at_s in zip(outcome.first, first_s, strict=True):
            self._first_s[request.request_id] = at_s
        for request, at_s in zip(outcome.finished, finish_s, strict=True):
            self.requests.append(self._record(request, at_s))
        return finish_s

    def _sample(self, step: Step, duration_s: float) -> StepSample:
        return StepSample(
            at_s=self.now_s,
            duration_s=duration_s,
            running=len(self.engine.running),
            waiting=len(self.engine.waiting),
            kv_usage=self.engine.pool.usage,
            preempted=len(step.preempted),
            tokens=step.prefill_tokens + step.decoding,
        )

    def _record(self, request: Request, finish_s: float) -> RequestOutcome:
        return RequestOutcome(
            request_id=request.request_id,
            arrival_s=self._sent_s.pop(request.request_id),
            first_token_s=self._first_s.pop(request.request_id),
            finish_s=finish_s,
            prompt_tokens=request.prompt_tokens,
            output_tokens=request.output_tokens,
            preemptions=request.preemptions,
        )
