"""vLLM's scheduler as a pure state machine: requests in, steps out, no clock anywhere.

Source of every rule: vLLM 0.32 v1/core/sched/scheduler.py. Modelled: FCFS and priority policy, chunked
prefill, whole-sequence admission, watermark, recompute preemption, cache groups of every kind, prefix
caching of full attention, slots ahead for speculation. Not modelled: accepted guesses (a step yields one
token a request), two steps in flight (vLLM's async scheduling frees a finished request's blocks a step
later), the prompt checkpoint of a state, long_prefill_token_threshold, LoRA, encoders. Limits of the API
(max_num_queued_reqs) are not the scheduler's.

A request that decodes is touched only in the steps that change its blocks or end it (`Agenda`): everything
else about it follows from the number of steps (estimator/twin/request.py).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from operator import attrgetter

from estimator.spec import SpecError
from estimator.twin.agenda import Agenda
from estimator.twin.blocks import BlockPool
from estimator.twin.limits import EngineLimits
from estimator.twin.queues import PriorityQueue, rank
from estimator.twin.request import FinishReason, Outcome, Prefix, Request, Stats, Step, StepClock, Turn
from estimator.twin.tables import NEVER, KvCache

__all__ = ["Engine", "EngineLimits", "FinishReason", "Outcome", "Request", "Stats", "Step"]

place_of = attrgetter("place")


class Engine:
    """Waiting and running queues over a block pool. `step()`, wait its cost, `settle(step)`, again."""

    def __init__(self, limits: EngineLimits) -> None:
        self.limits = limits
        self.waiting: deque[Request] | PriorityQueue = (
            PriorityQueue() if limits.policy == "priority" else deque()
        )
        self.running: list[Request] = []
        """In order of admission, which is the order of service."""
        self.stats = Stats()
        self._cache = KvCache(limits)
        self._clock = StepClock()
        self._requests: dict[str, Request] = {}
        self._arrivals = 0
        self._admissions = 0
        self._reading: list[Request] = []
        """The running that do not decode: tokens known before the step are still to be computed."""
        self._context_tokens = 0
        """Computed tokens of all that decode."""
        self._changes = Agenda()
        """Steps in which the block tables of a request that decodes change."""
        self._endings = Agenda()
        self._aborted: list[Request] = []
        """Since the step began."""

    @property
    def pool(self) -> BlockPool:
        return self._cache.pool

    @property
    def has_work(self) -> bool:
        return bool(self._requests)

    def add(
        self, request_id: str, prompt_tokens: int, max_tokens: int, *, priority: int = 0, prefix: Prefix = ()
    ) -> Request:
        """Puts a request into the waiting queue: at its end, or by priority (lower is sooner).

        Raises SpecError, one sentence, for one that could never finish: it would wait forever.
        """
        tokens_max = self.limits.tokens_max(prompt_tokens, max_tokens)
        self._cache.refuse_if_endless(tokens_max)
        if request_id in self._requests:
            raise SpecError(f"request id {request_id!r} is in use")
        self._arrivals += 1
        request = Request(
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
        self.waiting.append(request)
        return request

    def abort(self, request_id: str) -> bool:
        """Ends a request at once, also in the middle of a step; False when it is not here any more."""
        request = self._requests.get(request_id)
        if request is None:
            return False
        if request.place:
            self.running.remove(request)
            self._aborted.append(request)
        else:
            self.waiting.remove(request)
        self._end(request, "abort")
        return True

    def step(self) -> Step:
        """Schedules the next forward pass: running requests first, in order, then waiting ones."""
        self._clock.started += 1
        self._context_tokens += len(self.running) - len(self._reading)  # one more for each that decodes
        self._aborted.clear()
        turn = Turn(budget_tokens=self.limits.max_num_batched_tokens)
        served = self._serve_running(turn)
        batch = tuple(r for r in served if turn.chunks.get(r) != 0) if turn.chunks else tuple(served)
        decoding = len(served) - len(turn.chunks) + list(turn.chunks.values()).count(1)
        left = turn.left_tokens(len(served))
        admitted: list[Request] = []
        if not turn.preempted:
            left = self._admit(admitted, left)
        read = [*[request for request, chunk in turn.chunks.items() if chunk], *admitted]
        return Step(
            batch=batch + tuple(admitted),
            admitted=tuple(admitted),
            preempted=tuple(turn.preempted),
            prefill_tokens=turn.budget_tokens - left - decoding,
            decoding=decoding,
            context_tokens=self._context_tokens + sum([request.computed for request in read]),
        )

    def settle(self, step: Step) -> Outcome:
        """Ends the step: each request whose tokens are all computed gains one; the finished leave."""
        self._clock.settled += 1
        now = self._clock.settled
        read = [request for request in self._reading if request.computed == request.known]
        self._reading = [request for request in self._reading if request.computed < request.known]
        silent = {*self._reading, *self._aborted}  # nothing is sampled: a chunk, or gone meanwhile
        emitted = tuple([r for r in step.batch if r not in silent]) if silent else step.batch
        first = tuple([request for request in read if request.known == request.prompt_tokens])
        finished = [request for _, _, request in self._endings.take(now)]
        for request in read:
            request.known += 1
            if request.known == request.tokens_max:
                finished.append(request)
            else:
                self._decode(request)
        self.stats.generation_tokens += len(emitted)
        self.stats.prompt_tokens += sum([request.prompt_tokens for request in first])
        if finished:
            finished.sort(key=place_of)
            for request in finished:
                del self.running[self._position(request.place)]
                self._end(request, "length")
        return Outcome(emitted=emitted, first=first, finished=tuple(finished))

    def _serve_running(self, turn: Turn) -> list[Request]:
        """Gives the running their tokens and returns those that had their turn, in order.

        Only a chunk can leave too few tokens for those behind it. While a chunk is always the last, as when
        chunks may end anywhere, it is enough to stop at the requests whose block tables change.
        """
        now, reading = self._clock.started, self._reading
        entries = self._changes.take(now)
        due = [request for _, _, request in entries]
        if reading and reading[0] is not self.running[-1]:
            return self._serve_each(tuple(self.running), due, turn)
        if self._cache.grows_alike and self._cache.append_blocks(due):
            self._changes.put_again(now + self._cache.groups[0].size, entries)
            return self._serve_each(reading, due, turn)
        return self._serve_each((*due, *reading), due, turn)

    def _serve_each(self, stops: Sequence[Request], due: Sequence[Request], turn: Turn) -> list[Request]:
        """Stops at each of `stops`; the others before it decode and need nothing but their token."""
        everyone = len(stops) == len(self.running)
        for request in tuple(stops):
            place, computed = request.place, request.computed_tokens
            if not place:
                continue  # preempted in this step
            if request.since is None or everyone:
                left = turn.left_tokens(self._position(place))
                if not left:
                    return self._cut(place)
            if request.since is None:
                chunk = self._cache.chunk(request, min(request.known - computed, left))
                turn.chunks[request] = chunk
                if not chunk:
                    continue
                computed += chunk
            if not self._grow(request, computed, turn):
                return self._cut(place)
            if request.since is None:
                request.computed = computed
            elif request in due:
                self._watch(request, computed)
        return self.running

    def _cut(self, place: int) -> list[Request]:
        """The running from `place` on get no token in this step: they catch up as after a chunk."""
        position = self._position(place)
        for request in self.running[position:]:
            if request.since is not None:
                self._freeze(request)
                request.computed -= 1
                self._reading.append(request)
        self._reading.sort(key=place_of)
        return self.running[:position]

    def _position(self, place: int) -> int:
        """Where in the order of running the request of this place is, or would be."""
        return bisect_left(self.running, place, key=place_of)

    def _grow(self, request: Request, computed: int, turn: Turn) -> bool:
        """Blocks for `computed` tokens; takes them from the last in rank, from itself at last."""
        settled = request.computed if request.since is None else computed - 1
        while not self._cache.extend(request, settled, computed):
            victim = self.running[-1] if self.limits.policy == "fcfs" else max(self.running, key=rank)
            self._preempt(victim)
            turn.preempted.append(victim)
            turn.chunks.pop(victim, None)
            if victim is request:
                return False
        return True

    def _preempt(self, victim: Request) -> None:
        """Recompute preemption: all its blocks go, what it generated stays and is prefilled again."""
        del self.running[self._position(victim.place)]
        self._leave(victim)
        victim.computed = 0
        victim.preemptions += 1
        self.stats.preemptions += 1
        self.waiting.appendleft(victim)

    def _admit(self, admitted: list[Request], left: int) -> int:
        """Moves requests from the head of waiting to running; returns the token budget left.

        The first that does not fit stops admission: nobody overtakes it.
        """
        while self.waiting and left > 0 and len(self.running) < self.limits.max_num_seqs:
            request = self.waiting[0]
            found = self._cache.find_prefix(request)
            request.computed = len(found) * self.limits.block_size
            chunk = self._cache.chunk(request, min(request.known - request.computed, left))
            reserve = self.limits.watermark_blocks if self.running else 0
            if not chunk or not self._cache.admit(request, found, request.computed + chunk, reserve):
                request.computed = 0
                break
            if self.limits.enable_prefix_caching and not request.preemptions:
                self.stats.prefix_cache_queries += request.known
                self.stats.prefix_cache_hits += request.computed
            self.waiting.popleft()
            self._admissions += 1
            request.place = self._admissions
            request.cached_tokens = request.computed
            request.computed += chunk
            self.running.append(request)
            self._reading.append(request)
            admitted.append(request)
            left -= chunk
        return left

    def _decode(self, request: Request) -> None:
        """From the next step on the request computes one token a step."""
        now = self._clock.settled
        request.since = now
        self._endings.put(now + request.tokens_max - request.known, request)
        self._context_tokens += request.computed
        self._watch(request, request.computed)

    def _watch(self, request: Request, computed: int) -> None:
        """Puts the next change of the block tables of a request that decodes into the calendar."""
        change = min([table.change for table in request.tables])
        if change < NEVER:
            self._changes.put(self._clock.started + change - computed, request)

    def _freeze(self, request: Request) -> None:
        """Writes down the progress of a request that decodes no more."""
        self._context_tokens -= request.computed_tokens
        request.known, request.computed, request.since = request.tokens, request.computed_tokens, None

    def _leave(self, request: Request) -> None:
        """Takes everything from a request that runs no more but its tokens."""
        if request.since is not None:
            self._freeze(request)
        elif request in self._reading:
            self._reading.remove(request)
        request.place = 0
        self._cache.release(request)

    def _end(self, request: Request, reason: FinishReason) -> None:
        request.ended = True
        self._leave(request)
        del self._requests[request.request_id]
        self.stats.finished[reason] += 1
