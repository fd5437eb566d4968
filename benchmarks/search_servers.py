"""Servers whose limit is known, and users who load them as a search says: the twin on its virtual clock."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from estimator.spec import Lengths, Workload
from estimator.twin.arrivals import Arrival
from estimator.twin.cost import StepCost, step_seconds
from estimator.twin.limits import EngineLimits
from estimator.twin.virtual import ClosedLoop, RequestOutcome, VirtualServer, closed_loop
from loadtest.conductor.search import Command
from loadtest.conductor.search.settle import has_settled

Q = 0.05
WALLS = ("kv", "slots", "slo")
USERS_MAX = 2000
TRUTH_STARTS = 4
TRUTH_REQUESTS = 300
TRUTH_ROUNDS = 6
"""A start is judged for so many requests and so many rounds at least: preemptions take rounds to build up."""
TRUTH_RESOLUTION = 1.01
TRUTH_STEP = 1.2
WARM_ROUNDS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownServer:
    """A simulated server, what is asked of it, and the limits it is judged by."""

    wall: str
    limits: EngineLimits
    cost: StepCost
    workload: Workload
    ttft_s: float
    tpot_s: float
    about: int
    """What it was made for: where to begin to look for its true limit."""

    def violates(self, outcome: RequestOutcome) -> bool:
        return outcome.ttft_s > self.ttft_s or outcome.tpot_s > self.tpot_s


def random_server(seed: int) -> KnownServer:
    """The wall is where the numbers put it: one of the three limits is far nearer than the others."""
    rng = random.Random(seed)
    wall = WALLS[seed % len(WALLS)]
    n = round(16 * 16 ** rng.random())
    prompt, output = round(100 * 10 ** rng.random()), round(60 * 4 ** rng.random())
    workload = _narrow(prompt, output) if rng.random() < 0.3 else _spread(rng, prompt, output)
    cost = StepCost(
        fixed_s=0.004 + 0.006 * rng.random(),
        compute_s_per_token=2e-5 * (0.5 + rng.random()),
        weights_s=0.01 + 0.02 * rng.random(),
        context_s_per_token=2e-7 * (0.5 + rng.random()),
        sequence_s=5e-5 * (0.5 + rng.random()),
    )
    blocks_each = -(-(prompt + output) // 16)
    ample = 3 * n
    limits = EngineLimits(
        num_gpu_blocks=(n if wall == "kv" else ample) * blocks_each + workload.longest_tokens // 16 + 2,
        block_size=16,
        max_num_seqs=n if wall == "slots" else ample,
        max_num_batched_tokens=2048 + ample,
        max_model_len=workload.longest_tokens,
    )
    step_s = step_seconds(cost, prompt, ample, ample * (prompt + output // 2))
    slow = step_seconds(cost, prompt * n // output, n, n * (prompt + output // 2))
    return KnownServer(
        wall=wall,
        limits=limits,
        cost=cost,
        workload=workload,
        ttft_s=(0.5 + rng.random()) + 20 * step_s * rng.random(),
        tpot_s=slow if wall == "slo" else 5 * step_s,
        about=n,
    )


def _narrow(prompt: int, output: int) -> Workload:
    """All requests nearly alike. Were they quite alike, the server would have no one limit to be known.

    Who started when would decide for ever who waits: the same users break the limit with half of their
    requests or with none, as they began.
    """
    return Workload(
        input_tokens=Lengths(kind="uniform", min=prompt * 3 // 4, max=prompt * 5 // 4),
        output_tokens=Lengths(kind="uniform", min=output * 3 // 4, max=output * 5 // 4),
    )


def _spread(rng: random.Random, prompt: int, output: int) -> Workload:
    sigma = 0.2 + 0.5 * rng.random()

    def lengths(median: int) -> Lengths:
        return Lengths(
            kind="lognormal", median=float(median), sigma=sigma, min=max(1, median // 4), max=4 * median
        )

    return Workload(input_tokens=lengths(prompt), output_tokens=lengths(output))


def violation_rate(server: KnownServer, users: int) -> float:
    """Of runs at `users` from several starts, as many as make it clear."""
    request_s = first_request_s(server, users)
    judged: list[bool] = []
    for start in range(TRUTH_STARTS):
        judged += _judged_from(server, users, request_s, random.Random(f"truth {start}"))
        share = sum(judged) / len(judged)
        if share >= 2.5 * Q or (start and share <= Q / 4):  # a kind start proves nothing alone
            break
    return share


def _judged_from(server: KnownServer, users: int, request_s: float, rng: random.Random) -> list[bool]:
    """Which requests of one run violate, its start-up left out."""
    rounds = max(TRUTH_ROUNDS, TRUTH_REQUESTS / users)
    until_s = request_s * (WARM_ROUNDS + rounds)
    lengths = server.workload

    def ask(at_s: float) -> Iterable[Arrival]:
        if at_s < until_s:
            yield Arrival(
                at_s=at_s,
                prompt_tokens=lengths.input_tokens.at(rng.random()),
                output_tokens=lengths.output_tokens.at(rng.random()),
            )

    first = [arrival for _ in range(users) for arrival in ask(request_s * rng.random())]
    outcomes = VirtualServer(server.limits, server.cost).run(first, ask).requests
    return [server.violates(one) for one in outcomes if one.arrival_s >= WARM_ROUNDS * request_s]


def first_request_s(server: KnownServer, users: int) -> float:
    """The mean duration when each of `users` sends one request at once."""
    loop = ClosedLoop(users=users, until_s=1e-9, workload=server.workload)
    outcomes = closed_loop(server.limits, server.cost, loop).requests
    return sum(one.finish_s - one.arrival_s for one in outcomes) / len(outcomes)


def true_limit(server: KnownServer) -> int:
    """The largest number of users with at most a share Q of violations, to 1%; by bisection of long runs."""

    def holds_at(users: int) -> bool:
        return violation_rate(server, users) <= Q

    holds = breaks = server.about
    while holds and not holds_at(holds):
        holds, breaks = int(holds / TRUTH_STEP), holds
    if holds == breaks:
        breaks = math.ceil(holds * TRUTH_STEP)
        while breaks < USERS_MAX and holds_at(breaks):
            holds, breaks = breaks, math.ceil(breaks * TRUTH_STEP)
    while breaks > holds + 1 and breaks > holds * TRUTH_RESOLUTION:
        middle = (holds + breaks) // 2
        holds, breaks = (middle, breaks) if holds_at(middle) else (holds, middle)
    return holds


class Controller(Protocol):
    """What decides the load: loadtest.conductor.search.Search, or a method to compare it with."""

    @property
    def command(self) -> Command: ...

    def settled(self, at_s: float) -> None: ...

    def sent(self, request_id: str, at_s: float) -> None: ...

    def judged(self, request_id: str, violates: bool) -> None: ...

    def tick(self, at_s: float) -> Command: ...


class VirtualUsers:
    """As many users as were asked for last: more come over one duration of a request, fewer send no more."""

    def __init__(self, server: KnownServer, *, seed: int) -> None:
        self.server = server
        self.virtual = VirtualServer(server.limits, server.cost)
        self._rng = random.Random(seed)
        self._users = 0
        self._seen = 0
        self.under_way: dict[str, float] = {}
        """When each was sent, in that order."""
        self.to_come: list[float] = []
        """When the users still to start begin."""

    def hold(self, users: int, ramp_s: float) -> None:
        more, now_s = users - self._users, self.virtual.now_s
        if more > 0:
            self.to_come += [now_s + ramp_s * (i + 1) / more for i in range(more)]
        else:
            self.to_come = self.to_come[: max(0, len(self.to_come) + more)]
        self._users = users

    def start_due(self, until_s: float, sent: Callable[[str, float], None]) -> None:
        while self.to_come and self.to_come[0] <= until_s:
            self._send(self.to_come.pop(0), sent)

    def turn(self, sent: Callable[[str, float], None]) -> list[RequestOutcome]:
        """The requests that finished with the next step; their users send again, if wanted."""
        finishes_s = self.virtual.turn()
        done = self.virtual.requests[self._seen :]
        self._seen = len(self.virtual.requests)
        for outcome, finish_s in zip(done, finishes_s, strict=True):
            del self.under_way[outcome.request_id]
            if len(self.under_way) + len(self.to_come) < self._users:
                self._send(finish_s, sent)
        return done

    def _send(self, at_s: float, sent: Callable[[str, float], None]) -> None:
        lengths = self.server.workload
        request_id = self.virtual.send(
            Arrival(
                at_s=at_s,
                prompt_tokens=lengths.input_tokens.at(self._rng.random()),
                output_tokens=lengths.output_tokens.at(self._rng.random()),
            )
        )
        self.under_way[request_id] = at_s
        sent(request_id, at_s)

    def overdue(self) -> list[str]:
        """Requests already past the limit for their first token, oldest first."""
        late_s = self.virtual.now_s - self.server.ttft_s
        first_s = self.virtual.first_token_s
        return [one for one, at_s in self.under_way.items() if at_s < late_s and first_s(one) is None]


def drive(controller: Controller, server: KnownServer, *, seed: int) -> float:
    """Lets `controller` load the server until it says stop; the seconds that took."""
    users = VirtualUsers(server, seed=seed)
    request_s = first_request_s(server, 1)
    level, began_s, ttft_s, recent = -1, 0.0, list[float](), list[float]()
    tick_s = 0.0
    while (command := controller.command).phase != "stop":
        if command.level != level:
            level, began_s, ttft_s = command.level, users.virtual.now_s, []
            request_s = sum(recent) / len(recent) if recent else request_s
            users.hold(command.users, ramp_s=request_s)
            recent = []
        tick_s += 1.0
        while users.virtual.now_s < tick_s:
            users.start_due(users.virtual.now_s, controller.sent)
            if not users.virtual.has_work:
                users.start_due(users.to_come[0], controller.sent)
            for outcome in users.turn(controller.sent):
                controller.judged(outcome.request_id, server.violates(outcome))
                if outcome.arrival_s >= began_s:
                    ttft_s.append(outcome.ttft_s)
                    recent.append(outcome.finish_s - outcome.arrival_s)
        for request_id in users.overdue():
            controller.judged(request_id, True)
        now_s = users.virtual.now_s
        if command.phase == "settle":
            mean_s = sum(recent) / len(recent) if recent else request_s
            if has_settled(now_s - began_s, mean_s, ttft_s):
                controller.settled(now_s)
        controller.tick(now_s)
    return users.virtual.now_s
