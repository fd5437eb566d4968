"""vLLM's scheduler as a pure state machine: requests in, steps out, no clock anywhere.

Source of every rule: vLLM 0.32 v1/core/sched/scheduler.py, FCFS policy, one full-attention cache group,
no prefix caching, no speculative decoding, watermark 0 (its default). One step is in flight at a time;
vLLM's async scheduling overlaps two, which frees a finished request's blocks one step later.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Literal

from estimator.spec import SpecError
from estimator.twin.blocks import BlockPool
from estimator.units import ceil_div

FinishReason = Literal["length", "abort"]
"""The twin's models never stop by themselves: every request is sent as if with ignore_eos."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """The engine flags the scheduler obeys, in vLLM's words. `num_gpu_blocks` includes the null block."""

    num_gpu_blocks: int
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int

    def __post_init__(self) -> None:
        for name in ("block_size", "max_num_seqs", "max_num_batched_tokens", "max_model_len"):
            if getattr(self, name) < 1:
                raise SpecError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.num_gpu_blocks < 2:
            raise SpecError(
                f"num_gpu_blocks must be at least 2 (one is the null block), got {self.num_gpu_blocks}"
            )
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise SpecError(
                f"max_num_batched_tokens {self.max_num_batched_tokens} is below max_num_seqs "
                f"{self.max_num_seqs}: each running request needs a token a step, so vLLM refuses it"
            )


@dataclass(slots=True, kw_only=True, eq=False)
class Request:
    """One request inside the engine; others may read it, only the engine writes it."""

    request_id: str
    prompt_tokens: int
    tokens_max: int
    """Prompt and output together when it ends: max_tokens or max_model_len, whichever comes first."""
    tokens: int
    """Prompt and output known so far."""
    computed_tokens: int = 0
    """Tokens whose K and V are in the cache; 0 again after a preemption."""
    blocks: list[int] = field(default_factory=list)
    room_tokens: int = 0
    """Tokens its blocks have room for."""
    preemptions: int = 0
    ended: bool = False

    @property
    def output_tokens(self) -> int:
        return self.tokens - self.prompt_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What the engine put into one forward pass; its tokens exist only after `Engine.settle`."""

    batch: tuple[Request, ...]
    admitted: tuple[Request, ...]
    preempted: tuple[Request, ...]
    prefill_tokens: int
    decoding: int
    """Running sequences that compute one token."""
    context_tokens: int
    """Cached tokens attention reads in this step, over the batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a settled step yielded: one new token for each of `emitted`."""

    emitted: tuple[Request, ...]
    first: tuple[Request, ...]
    """Those of `emitted` whose first output token this is."""
    finished: tuple[Request, ...]


@dataclass(slots=True, kw_only=True)
class Stats:
    """Cumulative counters since the start. A prompt counts once, with its first token, as in vLLM."""

    preemptions: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    finished: Counter[str] = field(default_factory=Counter)


class Engine:
    """Waiting and running queues over a block pool. `step()`, wait its cost, `settle(step)`, again."""

    def __init__(self, limits: EngineLimits) -> None:
        self.limits = limits
        self.pool = BlockPool(limits.num_gpu_blocks)
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.stats = Stats()
        self._requests: dict[str, Request] = {}

    @property
    def has_work(self) -> bool:
        return bool(self._requests)

    def add(self, request_id: str, prompt_tokens: int, max_tokens: int) -> Request:
        """Puts a request at the end of the waiting queue.

        Raises SpecError, one sentence, for one that could never finish: it would wait forever.
        """
        if prompt_tokens < 1 or max_tokens < 1:
            raise SpecError(f"a request needs a prompt and an output: got {prompt_tokens} and {max_tokens}")
        if prompt_tokens >= self.limits.max_model_len:
            raise SpecError(
                f"a prompt of {prompt_tokens} tokens leaves no room for output within max_model_len "
                f"{self.limits.max_model_len}; shorten it"
            )
        if request_id in self._requests:
            raise SpecError(f"request id {request_id!r} is in use")
        tokens_max = min(prompt_tokens + max_tokens, self.limits.max_model_len)
        # The last token is sampled but never computed, so it needs no slot.
        longest_blocks = ceil_div(tokens_max - 1, self.limits.block_size)
        if longest_blocks > self.pool.usable_blocks:
            raise SpecError(
                f"a request of {tokens_max} tokens needs {longest_blocks} blocks and the cache has "
                f"{self.pool.usable_blocks}; shorten it or enlarge the cache"
            )
        request = Request(
            request_id=request_id, prompt_tokens=prompt_tokens, tokens_max=tokens_max, tokens=prompt_tokens
        )
        self._requests[request_id] = request
        self.waiting.append(request)
        return request

    def abort(self, request_id: str) -> bool:
        """Ends a request at once, also in the middle of a step; False when it is not here any more."""
        request = self._requests.get(request_id)
        if request is None:
            return False
        # Identity decides: a request is in exactly one queue.
        if request in self.running:
            self.running.remove(request)
        else:
            self.waiting.remove(request)
        self._end(request, "abort")
        return True

    def step(self) -> Step:
        """Schedules the next forward pass: running requests first, in order, then waiting ones."""
        decoding = 0
        context_tokens = 0
        budget = self.limits.max_num_batched_tokens
        running = self.running
        preempted: list[Request] = []
        index = 0
        while index < len(running) and budget > 0:  # the twin's hot loop: attributes are read once
            request = running[index]
            before = request.computed_tokens
            computed = request.tokens
            if computed > before + budget:
                computed = before + budget
            if computed > request.room_tokens and not self._grow(request, computed, preempted):
                break
            request.computed_tokens = computed
            context_tokens += computed
            index += 1
            if computed == before + 1:
                decoding += 1
                budget -= 1
            else:
                budget -= computed - before
        admitted: list[Request] = []
        if not preempted:
            budget = self._admit(admitted, budget)
            context_tokens += sum(request.computed_tokens for request in admitted)
        return Step(
            batch=tuple(running[: index + len(admitted)]),
            admitted=tuple(admitted),
            preempted=tuple(preempted),
            prefill_tokens=self.limits.max_num_batched_tokens - budget - decoding,
            decoding=decoding,
            context_tokens=context_tokens,
        )

    def settle(self, step: Step) -> Outcome:
        """Ends the step: each request whose tokens are all computed gains one; the finished leave."""
        emitted: list[Request] = []
        first: list[Request] = []
        finished: list[Request] = []
        for request in step.batch:
            tokens = request.tokens
            if request.computed_tokens < tokens or request.ended:
                continue  # a chunk of a longer prompt, or aborted meanwhile: nothing is sampled
            request.tokens = tokens + 1
            emitted.append(request)
            if tokens == request.prompt_tokens:
                first.append(request)
                self.stats.prompt_tokens += tokens
            if tokens + 1 == request.tokens_max:
                finished.append(request)
        self.stats.generation_tokens += len(emitted)
        if finished:
            for request in finished:
                self._end(request, "length")
            self.running = [request for request in self.running if not request.ended]
        return Outcome(emitted=tuple(emitted), first=tuple(first), finished=tuple(finished))

    def _grow(self, request: Request, tokens: int, preempted: list[Request]) -> bool:
        """Blocks for `tokens` computed tokens; takes them from the latest admitted, itself at last."""
        missing = ceil_div(tokens, self.limits.block_size) - len(request.blocks)
        while missing > self.pool.free_blocks:
            victim = self.running.pop()
            self._preempt(victim)
            preempted.append(victim)
            if victim is request:
                return False
        self._allocate(request, missing)
        return True

    def _preempt(self, victim: Request) -> None:
        """Recompute preemption: all its blocks go, what it generated stays and is prefilled again."""
        self._release(victim)
        victim.computed_tokens = 0
        victim.preemptions += 1
        self.stats.preemptions += 1
        self.waiting.appendleft(victim)

    def _admit(self, admitted: list[Request], budget: int) -> int:
        """Moves requests from the head of waiting to running; returns the token budget left.

        The whole sequence must fit into the free blocks though only a chunk is allocated
        (scheduler_reserve_full_isl). The first that does not fit stops admission: FCFS.
        """
        while self.waiting and budget > 0 and len(self.running) < self.limits.max_num_seqs:
            request = self.waiting[0]
            if ceil_div(request.tokens, self.limits.block_size) > self.pool.free_blocks:
                break
            self.waiting.popleft()
            request.computed_tokens = min(request.tokens, budget)
            self._allocate(request, ceil_div(request.computed_tokens, self.limits.block_size))
            self.running.append(request)
            admitted.append(request)
            budget -= request.computed_tokens
        return budget

    def _end(self, request: Request, reason: FinishReason) -> None:
        request.ended = True
        self._release(request)
        del self._requests[request.request_id]
        self.stats.finished[reason] += 1

    def _allocate(self, request: Request, count: int) -> None:
        request.blocks += self.pool.allocate(count)
        request.room_tokens = len(request.blocks) * self.limits.block_size

    def _release(self, request: Request) -> None:
        self.pool.free(request.blocks)
        request.blocks = []
        request.room_tokens = 0
