"""LMDeploy 0.18 as a pure state machine with the members of vLLM's (estimator/twin/scheduler.py).

Both its engines decide the next pass while the one before still runs (pytorch/engine/engine_loop.py
_main_loop_get_outputs, turbomind/engine/engine.cc InternalThreadEntry): so a request that comes now computes
in the pass after next, and one that ends is still in the next. `step()` returns the pass that begins and
decides its successor. Not modelled: prefix caching (off unless asked for), speculation, LoRA, a cache on
the host, several requests of one session.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from estimator.engine_spec import LmdeployBackend
from estimator.spec import SpecError
from estimator.twin.blocks import BlockPool
from estimator.twin.lmdeploy_limits import LmdeployLimits
from estimator.twin.lmdeploy_pytorch import PytorchBackend
from estimator.twin.lmdeploy_request import Backend, LmdeployRequest, Pass
from estimator.twin.lmdeploy_turbomind import TurbomindBackend
from estimator.twin.request import FinishReason, Outcome, Prefix, Request, Stats, Step, StepClock

BACKENDS: Final[dict[LmdeployBackend, type[PytorchBackend | TurbomindBackend]]] = {
    "pytorch": PytorchBackend,
    "turbomind": TurbomindBackend,
}
IDLE: Final = Pass(kind="decode")


class LmdeployEngine:
    """The API's request handles, a backend's scheduler and one pass decided ahead."""

    def __init__(self, limits: LmdeployLimits) -> None:
        self.limits = limits
        self.stats = Stats()
        self._backend: Backend = BACKENDS[limits.backend](limits)
        self._queue: deque[LmdeployRequest] = deque()
        """Those without a handle of the API, which has max_batch_size (serve/managers/session_manager.py)."""
        self._requests: dict[str, LmdeployRequest] = {}
        self._handles = limits.max_batch_size
        self._clock = StepClock()
        self._arrivals = 0
        self._running: Pass = IDLE
        self._next: Pass | None = None

    @property
    def pool(self) -> BlockPool:
        return self._backend.pool

    @property
    def running(self) -> list[LmdeployRequest]:
        return list(self._backend.running)

    @property
    def waiting(self) -> list[LmdeployRequest]:
        """In the scheduler, then in the API."""
        return [*self._backend.waiting, *self._queue]

    @property
    def has_work(self) -> bool:
        return bool(self._requests) or self._next is not None

    def add(
        self, request_id: str, prompt_tokens: int, max_tokens: int, *, priority: int = 0, prefix: Prefix = ()
    ) -> Request:
        """First come, first served: LMDeploy knows no priority, and no prefixes are cached here.

        Raises SpecError, one sentence, for one that could never finish.
        """
        tokens_max = self.limits.tokens_max(prompt_tokens, max_tokens)
        if request_id in self._requests:
            raise SpecError(f"request id {request_id!r} is in use")
        self._arrivals += 1
        request = LmdeployRequest(
            request_id=request_id,
            prompt_tokens=prompt_tokens,
            tokens_max=tokens_max,
            known=prompt_tokens,
            clock=self._clock,
            arrival=self._arrivals,
            priority=priority,
            prefix=prefix,
        )
        self._requests[request_id] = request
        self._queue.append(request)
        self._hand_over()
        return request

    def abort(self, request_id: str) -> bool:
        """Ends a request at once, also in the middle of a pass; False when it is not here any more."""
        request = self._requests.get(request_id)
        if request is None:
            return False
        if request.status == "queued":
            self._queue.remove(request)
        else:
            self._handles += 1
        self._end(request, "abort")
        return True

    def step(self) -> Step:
        """Begins the pass decided before and decides the next: `admitted` and `preempted` are of that."""
        backend = self._backend
        backend.admitted.clear()
        backend.preempted.clear()
        if self._next is None:
            self._hand_over()
            self._next = backend.plan()
        begun = self._running = self._next or IDLE
        reading = [(chunk.request.computed, chunk.tokens) for chunk in begun.reading]
        single = sum([tokens == 1 for _, tokens in reading])
        context_tokens = sum([start + tokens for start, tokens in reading])
        context_tokens += sum([request.computed for request in begun.decoding]) + len(begun.decoding)
        backend.dispatch(begun)
        self._next = backend.plan()
        # Whoever finished a moment ago hands its place on only after the next pass was decided.
        self._hand_over()
        for request in backend.preempted:
            request.preemptions += 1
        self.stats.preemptions += len(backend.preempted)
        return Step(
            batch=(*begun.decoding, *[chunk.request for chunk in begun.reading]),
            admitted=tuple(backend.admitted),
            preempted=tuple(backend.preempted),
            prefill_tokens=sum([tokens for _, tokens in reading]) - single,
            decoding=len(begun.decoding) + single,
            context_tokens=context_tokens,
            attended_pairs=sum([tokens * (2 * start + tokens) // 2 for start, tokens in reading]),
        )

    def settle(self, step: Step) -> Outcome:
        """Ends the pass: each request that sampled gains a token; the finished leave."""
        emitted = self._backend.settle(self._running)
        self._running = IDLE
        first = tuple([request for request in emitted if request.known == request.prompt_tokens + 1])
        finished = tuple([request for request in emitted if request.known == request.tokens_max])
        self.stats.generation_tokens += len(emitted)
        self.stats.prompt_tokens += sum([request.prompt_tokens for request in first])
        for request in finished:
            self._handles += 1
            self._end(request, "length")
        return Outcome(emitted=tuple(emitted), first=first, finished=finished)

    def _hand_over(self) -> None:
        """From the API to the scheduler, while there are handles and places."""
        while self._queue and self._handles and self._backend.size < self.limits.max_batch_size:
            self._handles -= 1
            request = self._queue.popleft()
            request.status = "waiting"
            self._backend.accept(request)

    def _end(self, request: LmdeployRequest, reason: FinishReason) -> None:
        if request.status != "queued":
            self._backend.end(request)
        request.status = "ended"
        request.ended = True
        del self._requests[request.request_id]
        self.stats.finished[reason] += 1
