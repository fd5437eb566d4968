"""The twin's scheduler without its short cuts: every running request is looked at in every step.

It shares the block tables with the twin and nothing of the order in which requests are served.
"""

from __future__ import annotations

from collections import Counter, deque

from estimator.twin.limits import EngineLimits
from estimator.twin.request import Request, StepClock
from estimator.twin.tables import KvCache


class PlainScheduler:
    """One step is `step()`, and `settle()` for the oldest; no request here ever has a `since`."""

    def __init__(self, limits: EngineLimits) -> None:
        self.limits = limits
        self.cache = KvCache(limits)
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.scheduled: dict[Request, int] = {}
        self.preempted: list[Request] = []
        self.in_flight: deque[dict[Request, tuple[int, bool]]] = deque()
        """Of each step the tokens it computes, and whether it yields one."""
        self.owed: Counter[Request] = Counter()
        """Tokens that steps in flight yield to those that run."""

    def add(self, like: Request) -> None:
        self.waiting.append(
            Request(
                request_id=like.request_id,
                prompt_tokens=like.prompt_tokens,
                tokens_max=like.tokens_max,
                known=like.prompt_tokens,
                clock=StepClock(),
                arrival=like.arrival,
                priority=like.priority,
                prefix=like.prefix,
            )
        )
        self._sort_waiting()

    def abort(self, request_id: str) -> None:
        for queue in (self.running, self.waiting):
            for request in [r for r in queue if r.request_id == request_id]:
                queue.remove(request)
                self.cache.release(request)
                for flight in self.in_flight:
                    flight.pop(request, None)

    def step(self) -> None:
        self.scheduled, self.preempted = {}, []
        self.cache.begin_step()
        index = 0
        while index < len(self.running) and self._left() > 0:
            request = self.running[index]
            tokens = self._tokens_for(request)
            if tokens and not self._make_room(request, tokens):
                break
            index = self.running.index(request) + 1
            if tokens:
                self.scheduled[request] = tokens
        if not self.preempted:
            self._admit()
        flight = {}
        for request, tokens in self.scheduled.items():
            request.computed += tokens
            yields = request.computed == request.known + self.owed[request]
            self.owed[request] += yields
            flight[request] = (tokens, yields)
        self.in_flight.append(flight)

    def settle(self) -> list[str]:
        """The requests that gained a token."""
        emitted = [request for request, (_, yields) in self.in_flight.popleft().items() if yields]
        for request in emitted:
            request.known += 1
            if request in self.running:
                self.owed[request] -= 1
                self.cache.store(request, request.computed - self.owed[request])
            if request.known == request.tokens_max:
                self.cache.release(request)
                (self.running if request in self.running else self.waiting).remove(request)
        return [request.request_id for request in emitted]

    def _tokens_for(self, request: Request) -> int:
        known = request.known + self.owed[request]
        if known == request.tokens_max and self.owed[request]:
            return 0  # its last token is on the way
        return self.cache.chunk(request, min(known - request.computed, self._left()))

    def _left(self) -> int:
        return self.limits.max_num_batched_tokens - sum(self.scheduled.values())

    def _make_room(self, request: Request, tokens: int) -> bool:
        settled = request.computed - sum(flight.get(request, (0,))[0] for flight in self.in_flight)
        while not self.cache.extend(request, settled, request.computed + tokens):
            victim = self.running[-1]
            if self.limits.policy == "priority":
                victim = max(self.running, key=lambda r: (r.priority, r.arrival))
            self.running.remove(victim)
            self.cache.release(victim)
            self.scheduled.pop(victim, None)
            victim.computed = self.owed[victim] = 0
            self.preempted.append(victim)
            self.waiting.insert(0, victim)
            self._sort_waiting()
            if victim is request:
                return False
        return True

    def _admit(self) -> None:
        while self.waiting and self._left() > 0 and len(self.running) < self.limits.max_num_seqs:
            request = self.waiting[0]
            hit = self.cache.find_prefix(request)
            request.computed, request.junction = hit.tokens, hit.junction
            tokens = self.cache.chunk(request, min(request.known - request.computed, self._left()))
            reserve = self.limits.watermark_blocks if self.running else 0
            if not tokens or not self.cache.admit(request, hit, request.computed + tokens, reserve):
                request.computed = 0
                break
            self.running.append(self.waiting.pop(0))
            self.scheduled[request] = tokens

    def _sort_waiting(self) -> None:
        if self.limits.policy == "priority":
            self.waiting.sort(key=lambda r: (r.priority, r.arrival))
