"""The scheduler of TurboMind: prompts and decoding share a pass, and whoever came first is served first.

Source of every rule: the C++ of LMDeploy, src/turbomind/engine/scheduler.cc (PlanRequests,
RunRequiredAdmission, Resume, Continue), engine.cc (Schedule, Update, Retire) and block.cc (Stamp), read at
commit 0606471a and 17124278; not verified by execution. Not modelled: prefix caching, checkpoints of a
recurrent state (a request whose state was taken begins anew), slabs that are partly filled.
"""

from __future__ import annotations

from estimator.twin.blocks import BlockPool
from estimator.twin.lmdeploy_limits import LmdeployLimits
from estimator.twin.lmdeploy_request import (
    Chunk,
    LmdeployRequest,
    Pass,
    give_blocks,
    take_blocks,
)
from estimator.units import ceil_div


class TurbomindBackend:
    """Requests in order of arrival over one pool. Each pass decides anew who runs."""

    def __init__(self, limits: LmdeployLimits) -> None:
        self.pool = BlockPool(limits.num_gpu_blocks + 1)  # TurboMind has no null block
        self.admitted: list[LmdeployRequest] = []
        self.preempted: list[LmdeployRequest] = []
        self._limits = limits
        self._requests: list[LmdeployRequest] = []
        self._retiring: list[LmdeployRequest] = []
        """Ended, but in a pass that is not settled: they keep their place and their blocks till then."""

    @property
    def running(self) -> list[LmdeployRequest]:
        return [request for request in self._requests if request.status == "running"]

    @property
    def waiting(self) -> list[LmdeployRequest]:
        return [request for request in self._requests if request.status == "waiting"]

    @property
    def size(self) -> int:
        return len(self._requests) + len(self._retiring)

    def accept(self, request: LmdeployRequest) -> None:
        self._requests.append(request)

    def plan(self) -> Pass | None:
        """scheduler.cc RunRequiredAdmission: in order of arrival, until tokens or blocks run out.

        Each asks for blocks of all its known tokens, also when only a chunk of them is computed, and may take
        them from those that came later, the last first. Who came later than one that did not fit rests too.
        """
        limits = self._limits
        size, kept = limits.block_size, limits.state_blocks
        left = limits.max_prefill_token_num + limits.max_batch_size
        context_left = limits.context_tokens_max
        decoding: list[LmdeployRequest] = []
        reading: list[Chunk] = []
        end = len(self._requests)
        """Requests from this position on lost blocks to others in this pass."""
        for position, request in enumerate(self._requests):
            if position >= end or left <= 0:
                break
            known = request.known + request.coming_output
            is_active = request.status == "running"
            start = request.computed + request.coming_input if is_active else self._resume(request)
            unread = known - start
            if not is_active or unread > 1:
                context_left -= known
                if context_left < 0:
                    break
            tokens = min(unread, left)
            if tokens < unread:
                tokens = (start + tokens) // size * size - start
                if tokens <= 0:
                    context_left += known
                    continue
            missing = -(-known // size) + kept - len(request.tables[0].ids)
            if missing > 0:
                room = self._make_room(missing, position, end)
                if room is None:
                    break
                end = room
                take_blocks(self.pool, request, missing)
            left -= tokens
            if is_active and unread == 1:
                decoding.append(request)
            else:
                request.computed = start - request.coming_input
                reading.append(Chunk(request=request, tokens=tokens, samples=tokens == unread))
        self._note(decoding, reading)
        return Pass(kind="mixed", decoding=decoding, reading=tuple(reading)) if decoding or reading else None

    def dispatch(self, chosen: Pass) -> None:
        """Nothing: a pass is set up when it is decided."""

    def settle(self, done: Pass) -> list[LmdeployRequest]:
        """engine.cc Update: also who lost its place meanwhile keeps the token."""
        emitted = [request for request in done.decoding if not request.ended]
        for request in emitted:
            request.computed += 1
        for request in done.decoding:
            request.passes -= 1
        for chunk in done.reading:
            request = chunk.request
            request.passes -= 1
            if not request.ended:
                request.computed += chunk.tokens
                if chunk.samples:
                    emitted.append(request)
        for request in emitted:
            request.known += 1
        for request in [request for request in self._retiring if not request.passes]:
            self._retiring.remove(request)
            give_blocks(self.pool, request)
        return emitted

    def end(self, request: LmdeployRequest) -> None:
        """engine.cc Retire: it stays until no pass holds it."""
        self._requests.remove(request)
        if request.passes:
            self._retiring.append(request)
        else:
            give_blocks(self.pool, request)

    def _blocks_of(self, tokens: int) -> int:
        return ceil_div(tokens, self._limits.block_size) + self._limits.state_blocks

    def _resume(self, request: LmdeployRequest) -> int:
        """scheduler.cc Resume: tokens that its blocks still hold; the last known one is computed anew."""
        if self._limits.state_blocks and len(request.block_ids) < self._blocks_of(request.computed):
            return 0
        held_tokens = len(request.block_ids) * self._limits.block_size
        return min(request.computed, held_tokens, request.known - 1)

    def _make_room(self, missing: int, position: int, end: int) -> int | None:
        """Takes blocks until `missing` are free: of the ended first, then from the end of the last to come.

        None when there are too few, and then nothing is taken; else the position from which on requests lost
        blocks.
        """
        short = missing - self.pool.free_blocks
        if short <= 0:
            return end
        later = self._requests[position + 1 :]
        if short > sum([len(request.block_ids) for request in (*self._retiring, *later)]):
            return None
        for request in self._retiring:
            short -= self._take_from(request, short)
        for victim in range(len(self._requests) - 1, position, -1):
            if short <= 0:
                break
            taken = self._take_from(self._requests[victim], short)
            short -= taken
            if taken:
                end = min(end, victim)
        return end

    def _take_from(self, victim: LmdeployRequest, short: int) -> int:
        """The tail goes first: block.cc Stamp ages a request's blocks from the end."""
        count = max(0, min(short, len(victim.block_ids)))
        if count:
            give_blocks(self.pool, victim, count)
        return count

    def _note(self, decoding: list[LmdeployRequest], reading: list[Chunk]) -> None:
        """engine.cc Schedule: who runs, who rests, and what the pass that is decided will bring."""
        if len(decoding) + len(reading) < len(self._requests):
            chosen = {*decoding, *[chunk.request for chunk in reading]}
            for request in self._requests:
                if request not in chosen:
                    if request.status == "running":
                        request.status = "waiting"
                        self.preempted.append(request)
                    request.coming_input = request.coming_output = 0
        for request in decoding:
            request.coming_input = request.coming_output = 1
            request.passes += 1
        for chunk in reading:
            request = chunk.request
            if request.status == "waiting":
                request.status = "running"
                self.admitted.append(request)
            request.coming_input, request.coming_output = chunk.tokens, int(chunk.samples)
            request.passes += 1
