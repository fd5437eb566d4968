"""The twin's scheduler without its short cuts: every running request is looked at in every step.

It shares the block tables with the twin and nothing of the order in which requests are served.
"""

from __future__ import annotations

from estimator.twin.limits import EngineLimits
from estimator.twin.request import Request, StepClock
from estimator.twin.tables import KvCache


class PlainScheduler:
    """One step is `step()` then `settle()`; no request here ever has a `since`."""

    def __init__(self, limits: EngineLimits) -> None:
        self.limits = limits
        self.cache = KvCache(limits)
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.scheduled: dict[Request, int] = {}
        self.preempted: list[Request] = []

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
                self.scheduled.pop(request, None)

    def step(self) -> None:
        self.scheduled, self.preempted = {}, []
        index = 0
        while index < len(self.running) and self._left() > 0:
            request = self.running[index]
            tokens = self.cache.chunk(request, min(request.known - request.computed, self._left()))
            if tokens and not self._make_room(request, tokens):
                break
            index = self.running.index(request) + 1
            if tokens:
                self.scheduled[request] = tokens
        if not self.preempted:
            self._admit()
        for request, tokens in self.scheduled.items():
            request.computed += tokens

    def settle(self) -> list[str]:
        """The requests that gained a token."""
        emitted = [request for request in self.scheduled if request.computed == request.known]
        for request in emitted:
            request.known += 1
            if request.known == request.tokens_max:
                self.cache.release(request)
                self.running.remove(request)
        return [request.request_id for request in emitted]

    def _left(self) -> int:
        return self.limits.max_num_batched_tokens - sum(self.scheduled.values())

    def _make_room(self, request: Request, tokens: int) -> bool:
        while not self.cache.extend(request, request.computed, request.computed + tokens):
            victim = self.running[-1]
            if self.limits.policy == "priority":
                victim = max(self.running, key=lambda r: (r.priority, r.arrival))
            self.running.remove(victim)
            self.cache.release(victim)
            self.scheduled.pop(victim, None)
            victim.computed = 0
            self.preempted.append(victim)
            self.waiting.insert(0, victim)
            self._sort_waiting()
            if victim is request:
                return False
        return True

    def _admit(self) -> None:
        while self.waiting and self._left() > 0 and len(self.running) < self.limits.max_num_seqs:
            request = self.waiting[0]
            found = self.cache.find_prefix(request)
            request.computed = len(found) * self.limits.block_size
            tokens = self.cache.chunk(request, min(request.known - request.computed, self._left()))
            reserve = self.limits.watermark_blocks if self.running else 0
            if not tokens or not self.cache.admit(request, found, request.computed + tokens, reserve):
                request.computed = 0
                break
            self.running.append(self.waiting.pop(0))
            self.scheduled[request] = tokens

    def _sort_waiting(self) -> None:
        if self.limits.policy == "priority":
            self.waiting.sort(key=lambda r: (r.priority, r.arrival))
