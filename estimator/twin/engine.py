"""vLLM's scheduler as a pure state machine: requests in, steps out, no clock anywhere.

Source of every rule: vLLM 0.32 v1/core/sched/scheduler.py and async_scheduler.py. Modelled: FCFS and priority
policy, chunked prefill, whole-sequence admission, watermark, recompute preemption, cache groups of every kind
with checkpoints of states, prefix caching over groups of one block size, slots ahead for speculation, two
steps in flight. Not modelled: accepted guesses (a step yields one token a request), prefix caching over
groups of several block sizes or with EAGLE's dropped block, pipelines of more than two steps,
mamba_cache_mode "all", long_prefill_token_threshold, LoRA, the budget of encoders. Limits of the API
(max_num_queued_reqs) are not the scheduler's.

A request that decodes is touched only in the steps that change its blocks or end it (`Agenda`): everything
else about it follows from the number of steps (estimator/twin/progress.py).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence

from estimator.spec import SpecError
from estimator.twin.blocks import BlockPool
from estimator.twin.limits import EngineLimits
from estimator.twin.progress import Progress, place_of
from estimator.twin.queues import PriorityQueue, rank
from estimator.twin.request import FinishReason, Outcome, Prefix, Request, Stats, Step, Turn
from estimator.twin.tables import KvCache

__all__ = ["Engine", "EngineLimits", "FinishReason", "Outcome", "Request", "Stats", "Step"]


class Engine:
    """Waiting and running queues over a block pool. `step()`, wait its cost, `settle(step)`, again.

    With steps_in_flight 2 a second step may begin before the first is settled; the older is settled first.
    """

    def __init__(self, limits: EngineLimits) -> None:
        self.limits = limits
        self.waiting: deque[Request] | PriorityQueue = (
            PriorityQueue() if limits.policy == "priority" else deque()
        )
        self.running: list[Request] = []
        """In order of admission, which is the order of service."""
        self.stats = Stats()
        self._cache = KvCache(limits)
        self._progress = Progress()
        self._requests: dict[str, Request] = {}
        self._arrivals = 0
        self._admissions = 0
        self._last_abort = 0
        """The newest step when a request was last aborted."""

    @property
    def pool(self) -> BlockPool:
        return self._cache.pool

    @property
    def has_work(self) -> bool:
        """There is a request. A step under way is to be settled also when there is none any more."""
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
            clock=self._progress.clock,
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
        else:
            self.waiting.remove(request)
        self._last_abort = self._progress.clock.started
        self._end(request, "abort")
        return True

    def step(self) -> Step:
        """Schedules the next forward pass: running requests first, in order, then waiting ones.

        Raises RuntimeError while limits.steps_under_way_max steps are under way.
        """
        progress = self._progress
        under_way = progress.steps_under_way
        if under_way >= self.limits.steps_under_way_max:
            raise RuntimeError(f"{under_way} steps are under way: settle the oldest first")
        progress.begin(len(self.running))
        self._cache.begin_step()
        turn = Turn(budget_tokens=self.limits.max_num_batched_tokens)
        served = self._serve_running(turn)
        batch = tuple([r for r in served if turn.chunks.get(r) != 0] if turn.chunks else served)
        decoding = len(served) - len(turn.chunks) + list(turn.chunks.values()).count(1)
        left = turn.left_tokens(len(served))
        admitted: list[Request] = []
        if not turn.preempted:
            left = self._admit(admitted, left)
        read = [request for request, chunk in turn.chunks.items() if chunk] + admitted
        context_tokens = progress.context_tokens + sum([request.computed for request in read])
        first, silent = progress.end(read) if read else ((), frozenset[Request]())
        return Step(
            batch=batch + tuple(admitted),
            admitted=tuple(admitted),
            preempted=tuple(turn.preempted),
            prefill_tokens=turn.budget_tokens - left - decoding,
            decoding=decoding,
            context_tokens=context_tokens,
            attended_pairs=sum([r.chunk * (2 * r.computed - r.chunk) // 2 for r in read if r.chunk > 1]),
            first=first,
            silent=silent,
        )

    def settle(self, step: Step) -> Outcome:
        """Ends the older step: each request whose tokens are all computed gains one; the finished leave."""
        ending, owed = self._progress.settle()
        emitted, first = step.batch, step.first
        if step.silent or self._last_abort >= self._progress.clock.settled:
            emitted = tuple([r for r in emitted if r not in step.silent and not r.ended])
            first = tuple([request for request in first if not request.ended])
        for request in owed:
            self._cache.store(request, request.computed)
            if request.known == request.tokens_max:
                ending.append(request)
        self.stats.generation_tokens += len(emitted)
        if first:
            self.stats.prompt_tokens += sum([request.prompt_tokens for request in first])
        if ending:
            ending.sort(key=place_of)
            for request in ending:
                if request.place:
                    del self.running[self._position(request.place)]
                else:
                    self.waiting.remove(request)  # preempted while its last token was under way
                self._end(request, "length")
        return Outcome(emitted=emitted, first=first, finished=tuple(ending))

    def _serve_running(self, turn: Turn) -> list[Request]:
        """Gives the running their tokens and returns those that had their turn, in order.

        Only a chunk can leave too few tokens for those behind it. While a chunk is always the last, as when
        chunks may end anywhere, it is enough to stop at the requests whose block tables change.
        """
        reading, spent = self._progress.reading, self._progress.spent
        entries = self._progress.changes()
        due = [request for _, _, request in entries]
        if reading and reading[0] is not self.running[-1]:
            return self._serve_each(tuple(self.running), due, turn)
        if self._cache.grows_alike and self._cache.append_blocks(due):
            self._progress.change_again(entries, self._cache.groups[0].size)
            return self._serve_each((*spent, *reading), due, turn)
        return self._serve_each((*spent, *due, *reading), due, turn)

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
                    return self._cut(place, turn)
            if request.since is None:
                chunk = self._cache.chunk(request, min(request.known - computed, left))
                turn.chunks[request] = chunk
                if not chunk:
                    continue
                computed += chunk
            if not self._grow(request, computed, turn):
                return self._cut(place, turn)
            if request.since is None:
                self._progress.read(request, chunk)
            elif request in due:
                self._progress.watch(request, computed)
        return self.running

    def _cut(self, place: int, turn: Turn) -> list[Request]:
        """The running from `place` on get no token in this step: they catch up as after a chunk."""
        position = self._position(place)
        self._progress.pause(self.running[position:])
        for request in self._progress.spent:
            if request.place >= place:
                turn.chunks.pop(request, None)
        return self.running[:position]

    def _position(self, place: int) -> int:
        """Where in the order of running the request of this place is, or would be."""
        return bisect_left(self.running, place, key=place_of)

    def _grow(self, request: Request, computed: int, turn: Turn) -> bool:
        """Blocks for `computed` tokens; takes them from the last in rank, from itself at last."""
        settled = request.settled_tokens
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
            hit = self._cache.find_prefix(request)
            request.computed, request.junction = hit.tokens, hit.junction
            chunk = self._cache.chunk(request, min(request.known - request.computed, left))
            reserve = self.limits.watermark_blocks if self.running else 0
            if not chunk or not self._cache.admit(request, hit, request.computed + chunk, reserve):
                request.computed = 0
                break
            if self.limits.enable_prefix_caching and not request.preemptions:
                self.stats.prefix_cache_queries += request.known
                self.stats.prefix_cache_hits += request.computed
            self.waiting.popleft()
            self._admissions += 1
            request.place = self._admissions
            request.cached_tokens = request.computed
            self._progress.read(request, chunk)
            self._progress.reading.append(request)
            self.running.append(request)
            admitted.append(request)
            left -= chunk
        return left

    def _leave(self, request: Request) -> None:
        """Takes everything from a request that runs no more but its tokens."""
        self._progress.drop(request)
        request.place = 0
        self._cache.release(request)

    def _end(self, request: Request, reason: FinishReason) -> None:
        request.ended = True
        self._leave(request)
        del self._requests[request.request_id]
        self.stats.finished[reason] += 1
