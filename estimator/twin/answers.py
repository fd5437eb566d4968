"""Answers under way: each new token becomes bytes and goes to the socket within the engine's own turn.

Five hundred streams a step leave no time for a task switch, a JSON encoder or a header per token, so the
chunks are written straight to the transport once aiohttp has sent the headers.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Protocol

from aiohttp import HttpVersion11, web

from estimator.twin.faults import Fault
from estimator.twin.realtime import EngineLoop, Ticket
from estimator.twin.speech import Speech

BACKLOG_BYTES_MAX: Final = 1 << 20
"""Beyond this much unread the tokens of a slow reader wait and come together, as in vLLM."""
SSE: Final = "text/event-stream; charset=utf-8"
ERROR_FRAME: Final = (
    b'data: {"error":{"message":"EngineCore encountered an issue. See stack trace (above) for the root '
    b'cause.","type":"InternalServerError","param":null,"code":500}}\n\ndata: [DONE]\n\n'
)


class Wire(Protocol):
    """One engine's encoding of one streamed answer."""

    def role(self) -> bytes: ...
    def words(self, index: int) -> tuple[bytes, ...]: ...
    def tokens(self, index: int, first: int, count: int) -> bytes: ...
    def end(self, output_tokens: Sequence[int]) -> bytes: ...


class Channel:
    """The body of one streamed response, its HTTP chunks and its faults."""

    def __init__(self, transport: asyncio.Transport, *, chunked: bool, faults: Sequence[Fault]) -> None:
        self._transport = transport
        self._chunked = chunked
        self._faults = {fault.name: fault.number for fault in faults if fault.name in STREAM_LIMITS}
        self._cut_utf8 = any(fault.name == "cut_utf8" for fault in faults)
        self._sent_bytes = 0
        self._held: list[bytes] = []
        self.silent = False
        self.over = False

    @property
    def backed_up(self) -> bool:
        return self._transport.get_write_buffer_size() > BACKLOG_BYTES_MAX

    @property
    def write(self) -> Callable[[bytes], None] | None:
        """The shortest way for a framed chunk; None where a fault wants to see each."""
        return None if self._faults or self._cut_utf8 else self._transport.write

    def framed(self, data: bytes) -> bytes:
        """As one HTTP chunk."""
        return b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data

    @property
    def lying_factor(self) -> float:
        return self._faults.get("lying_usage", 1.0)

    def send(self, data: bytes, tokens: int, *, last: bool = False) -> None:
        """Writes `data`, after which the client has `tokens` of its choice in all."""
        if self.silent or self.over:
            return
        if self._faults or self._cut_utf8:
            self._send_with_faults(data, tokens, last=last)
        elif data:
            self._transport.write(self.framed(data))

    def _send_with_faults(self, data: bytes, tokens: int, *, last: bool) -> None:
        faults = self._faults
        if "coalesced" in faults:
            self._held.append(data)
            if len(self._held) < faults["coalesced"] and not last:
                return
            data, self._held = b"".join(self._held), []
        room = faults.get("truncate")
        if room is not None and self._sent_bytes + len(data) >= room:
            self._chunk(data[: int(room) - self._sent_bytes])
            self._end(self._transport.close)
            return
        if self._cut_utf8:
            self._chunk_cut(data.replace(b" tank", " t\u00e4nk\u20ac".encode()))
        else:
            self._chunk(data)
        self._after(tokens)

    def _after(self, tokens: int) -> None:
        faults = self._faults
        if tokens >= faults.get("die_mid_stream", tokens + 1):
            self._end(self._reset)
        elif tokens >= faults.get("stop_talking", tokens + 1):
            self.silent = True
        elif tokens >= faults.get("error_frame", tokens + 1):
            self._chunk(ERROR_FRAME)
            self.over = True

    def _reset(self) -> None:
        """RST, as from a killed process; a plain abort would still say goodbye."""
        connection = self._transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def _end(self, how: Callable[[], None]) -> None:
        self.over = True
        how()

    def _chunk(self, data: bytes) -> None:
        if not data:
            return
        self._sent_bytes += len(data)
        self._transport.write(self.framed(data))

    def _chunk_cut(self, data: bytes) -> None:
        """In pieces that each end inside a character, where there is one of several bytes."""
        start = 0
        for place in range(1, len(data)):
            if data[place] & 0xC0 == 0x80:
                self._chunk(data[start:place])
                start = place
        self._chunk(data[start:])


STREAM_LIMITS: Final = frozenset(
    ("coalesced", "truncate", "die_mid_stream", "stop_talking", "error_frame", "lying_usage")
)


class Streamed:
    """One streamed answer: a ticket a choice, and the channel they all write to."""

    def __init__(self, wire: Wire, *, interval: int) -> None:
        self.done = asyncio.Event()
        self._wire = wire
        self._interval = interval
        self._role = wire.role()
        self._channel: Channel | None = None
        self._tickets: list[Ticket] = []
        self._open = 0
        self._write: Callable[[bytes], None] | None = None
        self._words: list[list[bytes]] = []

    def submit(self, loop: EngineLoop, answer_id: str, speeches: Sequence[Speech], max_tokens: int) -> None:
        """Raises SpecError where one could never finish; `withdraw` is due in any case."""
        self._open = len(speeches)
        for index, speech in enumerate(speeches):
            told = partial(self._deliver, index)
            self._tickets.append(loop.submit(f"{answer_id}-{index}", speech, told, max_tokens=max_tokens))

    def withdraw(self, loop: EngineLoop) -> None:
        for ticket in self._tickets:
            loop.withdraw(ticket)

    def open(self, channel: Channel) -> None:
        """The headers are out: what came meanwhile goes now."""
        self._channel = channel
        self._write = channel.write
        for index in range(len(self._tickets)):
            self._words.append([channel.framed(word) for word in self._wire.words(index)])
        for index, ticket in enumerate(self._tickets):
            if ticket.fresh_tokens:
                self._deliver(index)

    def _deliver(self, index: int) -> None:
        channel, ticket = self._channel, self._tickets[index]
        first = ticket.taken_tokens
        fresh = ticket.request.tokens - ticket.request.prompt_tokens - first
        if channel is None or (
            not ticket.finished and ((first and fresh < self._interval) or channel.backed_up)
        ):
            return
        ticket.taken_tokens = first + fresh
        if fresh == 1 and first and not ticket.finished and self._write and (words := self._words[index]):
            self._write(words[first % len(words)])  # nearly all tokens: no encoding, no framing
            return
        data = self._wire.tokens(index, first, fresh)
        if self._role:
            data, self._role = self._role + data, b""
        channel.send(data, first + fresh, last=ticket.finished)
        if ticket.finished:
            self._finish(channel, first + fresh)
        if channel.over:
            self.done.set()

    def _finish(self, channel: Channel, tokens: int) -> None:
        """One choice has ended; with the last of them the answer has."""
        self._open -= 1
        if self._open:
            return
        told = [int(ticket.taken_tokens * channel.lying_factor) for ticket in self._tickets]
        channel.send(self._wire.end(told), tokens, last=True)
        if not channel.silent:
            self.done.set()


async def stream(request: web.Request, answer: Streamed, faults: Sequence[Fault]) -> web.StreamResponse:
    """Sends headers, then lets the engine's turns do the writing until the last event."""
    response = web.StreamResponse(headers={"Content-Type": SSE})
    await response.prepare(request)
    transport = request.transport
    if transport is None:
        return response
    answer.open(Channel(transport, chunked=request.version >= HttpVersion11, faults=faults))
    await answer.done.wait()
    if not transport.is_closing():
        await response.write_eof()
    return response


class Gathered:
    """An answer that is not streamed: only its end matters."""

    def __init__(self) -> None:
        self.done = asyncio.Event()
        self._tickets: list[Ticket] = []

    def submit(self, loop: EngineLoop, answer_id: str, speeches: Sequence[Speech], max_tokens: int) -> None:
        """Raises SpecError where one could never finish; `withdraw` is due in any case."""
        for index, speech in enumerate(speeches):
            name = f"{answer_id}-{index}"
            self._tickets.append(loop.submit(name, speech, self._look, max_tokens=max_tokens))

    def withdraw(self, loop: EngineLoop) -> None:
        for ticket in self._tickets:
            loop.withdraw(ticket)

    def _look(self) -> None:
        if all(ticket.finished for ticket in self._tickets):
            self.done.set()
