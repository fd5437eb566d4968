"""The scheduler of LMDeploy's PyTorch engine: prompts and decoding in separate passes.

Source of every rule: LMDeploy 0.18 pytorch/engine/inputs_maker.py (which pass comes next),
pytorch/paging/prefill_scheduler.py (who enters), pytorch/paging/scheduler.py schedule_running (room for
decoding) and pytorch/paging/eviction_helper/recompute_eviction_helper.py (whose blocks go). Not modelled: the
credit of one chunk that a long prompt gets for every two seconds it waits, blocks freed behind a window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from estimator.twin.blocks import BlockPool
from estimator.twin.lmdeploy_limits import LmdeployLimits
from estimator.twin.lmdeploy_request import (
    Chunk,
    LmdeployRequest,
    Pass,
    give_blocks,
    missing_blocks,
    take_blocks,
)
from estimator.units import ceil_div

SHORT_TURNS: Final = 3
"""Prefills of short prompts between two chunks of a long one (envs.py opt_ttft_short_turns)."""
RUNNING_SHARE: Final = 0.5
"""With fewer running, of max_batch_size, waiting prompts go first (inputs_maker.py do_prefill_default)."""

Lane = Callable[[], Pass | None]


class PytorchBackend:
    """Waiting, ready and running requests over one pool."""

    def __init__(self, limits: LmdeployLimits) -> None:
        self.pool = BlockPool(limits.num_gpu_blocks)  # its null block is the one kept for dummy inputs
        self.admitted: list[LmdeployRequest] = []
        self.preempted: list[LmdeployRequest] = []
        self.running: list[LmdeployRequest] = []
        self._limits = limits
        self._waiting: dict[str, LmdeployRequest] = {}
        """In order of joining, which is the order of eviction; a preempted one joins anew."""
        self._ready: list[LmdeployRequest] = []
        self._decoders: Sequence[LmdeployRequest] = ()
        """Of the pass before; those that ended or lost their place meanwhile are still in it."""
        self._reader: LmdeployRequest | None = None
        """Whose long prompt is read chunk by chunk; there is one at a time."""
        self._decodes = 0
        """Decoding passes in a row while others wait."""
        self._short_turns = 0
        """Passes of short prompts since the last chunk."""
        self._was_chunk = False
        """The last pass decided: decoding has its turn between two chunks."""

    @property
    def waiting(self) -> list[LmdeployRequest]:
        return [*self._waiting.values(), *self._ready]

    @property
    def size(self) -> int:
        return len(self._waiting) + len(self._ready) + len(self.running)

    def accept(self, request: LmdeployRequest) -> None:
        self._waiting[request.request_id] = request

    def plan(self) -> Pass | None:
        """inputs_maker.py _send_next_inputs_impl and _ForwardInputsTask.run."""
        wants_prefill = self._wants_prefill()
        for lane in self._lanes(wants_prefill):
            chosen = lane()
            if chosen is not None:
                if chosen.kind != "decode":
                    self._decodes = 0
                self._was_chunk = chosen.kind == "chunk"
                return chosen
        return None

    def dispatch(self, chosen: Pass) -> None:
        """scheduler.py activate_seqs, then inputs_maker.py update_running_seqs."""
        if chosen.kind == "decode":
            self._decoders = chosen.decoding
            return
        for chunk in chosen.reading:
            request = chunk.request
            if request.status == "ready":
                self._ready.remove(request)
                self.running.append(request)
                request.status = "running"
            if not chunk.samples:
                request.computed += chunk.tokens
        if chosen.kind == "read":
            self._decoders = [*self._decoders, *[chunk.request for chunk in chosen.reading]]

    def settle(self, done: Pass) -> list[LmdeployRequest]:
        """strategies/ar/sequence.py update_running: who lost its place meanwhile loses the token too."""
        read = [chunk.request for chunk in done.reading if chunk.samples]
        emitted = [request for request in (*done.decoding, *read) if request.status == "running"]
        for request in emitted:
            request.computed = request.known
            request.known += 1
        return emitted

    def end(self, request: LmdeployRequest) -> None:
        """Its blocks are free at once. LMDeploy frees them later, but who needs them may take them."""
        if request.status == "running":
            self.running.remove(request)
        elif request.status == "ready":
            self._ready.remove(request)
        else:
            del self._waiting[request.request_id]
        give_blocks(self.pool, request)

    def _wants_prefill(self) -> bool:
        """inputs_maker.py do_prefill_default."""
        reader = self._open_reader()
        if reader is not None and not self._is_long(reader):
            return True
        if not self._waiting:
            self._decodes = 0
            return False
        limits = self._limits
        unread = sum([request.unread_tokens for request in self._waiting.values()])
        placed = len(self._ready) + len(self.running)
        if (
            self._decodes >= limits.prefill_interval
            or unread >= limits.max_prefill_token_num
            or placed < limits.max_batch_size * RUNNING_SHARE
        ):
            return True
        self._decodes += 1
        return False

    def _lanes(self, wants_prefill: bool) -> Iterable[Lane]:
        """What may fill the next pass: the first that has something to do does."""
        reader = self._open_reader()
        is_due = self._short_turns >= SHORT_TURNS
        if reader is not None:
            short = () if is_due else (self._read_short,)
            if not self._is_long(reader):
                return (self._next_chunk, self._decode)
            if self._was_chunk:
                return (self._decode, *short, self._next_chunk)
            return (*short, self._next_chunk, self._decode)
        if not wants_prefill:
            return (self._decode,)
        if not any(self._is_long(request) for request in self._waiting.values()):
            return (self._read, self._decode)
        if is_due:
            return (self._read_long_first, self._read_short, self._decode)
        return (self._read_short, self._read_long_first, self._decode)

    def _open_reader(self) -> LmdeployRequest | None:
        """inputs_maker.py LongContextChunker.check_enable."""
        if self._reader is not None and self._reader.status != "running":
            self._reader = None
        return self._reader

    def _is_long(self, request: LmdeployRequest) -> bool:
        return request.unread_tokens > self._limits.max_prefill_token_num

    def _read(self) -> Pass | None:
        return self._admit(list(self._in_order()), may_be_long=True)

    def _read_short(self) -> Pass | None:
        """Short prompts, the shortest first; long ones are passed over."""
        chosen = self._admit([*self._short_first(), *self._long()], may_be_long=False)
        self._short_turns += chosen is not None
        return chosen

    def _read_long_first(self) -> Pass | None:
        """The long prompt of the fewest chunks, and when it does not fit the short ones."""
        chunk = self._limits.max_prefill_token_num
        by_chunks = sorted(self._long(), key=lambda r: (ceil_div(r.unread_tokens, chunk), r.arrival))
        return self._admit([*by_chunks[:1], *self._short_first(), *by_chunks[1:]], may_be_long=True)

    def _in_order(self) -> list[LmdeployRequest]:
        return sorted(self._waiting.values(), key=lambda request: request.arrival)

    def _long(self) -> list[LmdeployRequest]:
        return [request for request in self._in_order() if self._is_long(request)]

    def _short_first(self) -> list[LmdeployRequest]:
        short = [request for request in self._waiting.values() if not self._is_long(request)]
        return sorted(short, key=lambda request: (request.unread_tokens, request.arrival))

    def _admit(self, order: list[LmdeployRequest], *, may_be_long: bool) -> Pass | None:
        """prefill_scheduler.py schedule: as many as fit into places, tokens and blocks.

        Tokens bind from the second on. The first that does not fit stops admission; in a turn for short
        prompts only too few blocks do. To make room, requests that wait lose their blocks, the last first.
        """
        limits = self._limits
        places = limits.max_batch_size - len(self._ready) - len(self.running)
        chosen: list[LmdeployRequest] = []
        skipped: list[LmdeployRequest] = []
        left = limits.max_prefill_token_num
        for position, request in enumerate(order):
            if len(chosen) >= places:
                break
            is_long = self._is_long(request)
            tokens = min(request.unread_tokens, limits.max_prefill_token_num)
            if (is_long and not may_be_long) or (chosen and tokens > left):
                if may_be_long:
                    break
                skipped.append(request)
                continue
            request.kv_token_limit = request.computed + tokens if is_long else None
            ahead = 0 if is_long else limits.prefill_interval
            if not self._make_room(request, ahead, reversed([*skipped, *order[position + 1 :]])):
                request.kv_token_limit = None
                break
            del self._waiting[request.request_id]
            request.status = "ready"
            self._ready.append(request)
            chosen.append(request)
            left -= tokens
            if is_long:
                break
        self.admitted += chosen
        if chosen and self._is_long(chosen[0]):
            self._reader = chosen[0]
            return self._chunk_of(chosen[0])
        return self._read_all(chosen) if chosen else None

    def _next_chunk(self) -> Pass | None:
        """inputs_maker.py _build_active_chunk: the reader goes on, if there are blocks for its next chunk."""
        reader = self._reader
        assert reader is not None
        is_last = not self._is_long(reader)
        before = reader.kv_token_limit
        reader.kv_token_limit = None if is_last else reader.computed + self._limits.max_prefill_token_num
        ahead = self._limits.prefill_interval if is_last else 0
        if not self._make_room(reader, ahead, list(self._waiting.values())):
            reader.kv_token_limit = before
            return None
        if not is_last:
            return self._chunk_of(reader)
        self._short_turns = 0
        self._reader = None
        return self._read_all([reader])

    def _chunk_of(self, reader: LmdeployRequest) -> Pass:
        self._short_turns = 0
        chunk = Chunk(request=reader, tokens=self._limits.max_prefill_token_num, samples=False)
        return Pass(kind="chunk", reading=(chunk,))

    def _read_all(self, requests: list[LmdeployRequest]) -> Pass:
        self._decoders = [request for request in self._decoders if request.status == "running"]
        chunks = [Chunk(request=one, tokens=one.unread_tokens, samples=True) for one in requests]
        return Pass(kind="read", reading=tuple(chunks))

    def _decode(self) -> Pass | None:
        """scheduler.py schedule_running: room for one more token each, the last first.

        Who finds none loses its place but keeps its blocks: those before it may now take them.
        """
        size, ahead = self._limits.block_size, self._limits.prefill_interval
        valid: list[LmdeployRequest] = []
        for request in reversed(self._decoders):
            if request.status != "running":
                continue
            has_room = request.known < len(request.tables[0].ids) * size
            if has_room or self._make_room(request, ahead, list(self._waiting.values())):
                valid.append(request)
            else:
                self._preempt(request)
        valid.reverse()
        return Pass(kind="decode", decoding=valid) if valid else None

    def _preempt(self, request: LmdeployRequest) -> None:
        self.running.remove(request)
        request.status = "waiting"
        self._waiting[request.request_id] = request
        self.preempted.append(request)

    def _make_room(self, request: LmdeployRequest, ahead: int, victims: Iterable[LmdeployRequest]) -> bool:
        """Takes the blocks the request needs, `ahead` tokens more than it has; False when there are too few.

        Victims lose all their blocks, one after the other until it is enough, and in vain if it never is.
        """
        tokens = request.known if request.kv_token_limit is None else request.kv_token_limit
        missing = missing_blocks(request, tokens + ahead, self._limits.block_size)
        for victim in victims:
            if missing <= self.pool.free_blocks:
                break
            if victim.block_ids:
                give_blocks(self.pool, victim)
                victim.computed = 0
                victim.kv_token_limit = None
        if missing > self.pool.free_blocks:
            return False
        take_blocks(self.pool, request, missing)
        return True
