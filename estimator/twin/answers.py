"""Answers under way: each new token becomes bytes and goes to the socket within the engine's own turn.

Five hundred streams a step leave no time for a task switch, a JSON encoder or a header per token, so the
chunks are written straight to the transport once aiohttp has sent the headers.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from aiohttp import HttpVersion11, web

from estimator.twin.faults import Fault
from estimator.twin.ranks import Gate
from estimator.twin.realtime import Ticket
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
    def end(self, output_tokens: Sequence[int], cached_tokens: Sequence[int]) -> bytes: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Under which name an answer's prompts enter the engine, and what their client said about them."""

    answer_id: str
    max_tokens: int
    rank: int | None = None
    """The data-parallel rank it asks for."""

    def submit(self, gate: Gate, index: int, speech: Speech, told: Callable[[], None]) -> Ticket:
        """The prompt of choice `index`."""
        name = f"{self.answer_id}-{index}"
        return gate.submit(name, speech, told, max_tokens=self.max_tokens, rank=self.rank)


class Channel:
    """The body of one streamed response, its HTTP chunks and its faults."""

    def __init__(self, transport: asyncio.Transport, *, chunked: bool, faults: Sequence[Fault]) -> None:
        self.transport = transport
        self._chunked = chunked
        self._faults = {fault.name: fault.number for fault in faults if fault.name in STREAM_LIMITS}
        self._cut_utf8 = any(fault.name == "cut_utf8" for fault in faults)
        self._sent_bytes = 0
        self._held: list[bytes] = []
        self.silent = False
        self.over = False

    @property
    def backed_up(self) -> bool:
        return self.transport.get_write_buffer_size() > BACKLOG_BYTES_MAX

    @property
    def is_plain(self) -> bool:
        """No fault wants to see each chunk."""
        return not (self._faults or self._cut_utf8)

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
        if not self.is_plain:
            self._send_with_faults(data, tokens, last=last)
        elif data:
            self.transport.write(self.framed(data))

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
            self._end(self.transport.close)
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
        connection = self.transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def _end(self, how: Callable[[], None]) -> None:
        self.over = True
        how()

    def _chunk(self, data: bytes) -> None:
        if not data:
            return
        self._sent_bytes += len(data)
        self.transport.write(self.framed(data))

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


class _Choice:
    """One choice of a streamed answer: each of its tokens passes here, within the engine's own turn."""

    __slots__ = ("_answer", "_backlog_bytes", "_index", "_plain", "_write", "ticket")

    def __init__(self, answer: Streamed, index: int) -> None:
        self.ticket: Ticket
        self._answer = answer
        self._index = index
        self._plain: tuple[bytes, ...] = ()
        """While the reader keeps up: the bytes of a token, by its number modulo theirs."""

    def tell(self) -> None:
        """A token came. Nearly all of them go out here, without encoding or framing."""
        ticket, plain = self.ticket, self._plain
        if plain and not ticket.finished and self._backlog_bytes() <= BACKLOG_BYTES_MAX:
            number = ticket.taken_tokens
            ticket.taken_tokens = number + 1
            self._write(plain[number % len(plain)])
        else:
            self._answer.deliver(self._index)
            self._plain = self._answer.plain(self._index)

    def open(self, channel: Channel) -> None:
        """The headers are out: what came meanwhile goes now."""
        self._write = channel.transport.write
        self._backlog_bytes = channel.transport.get_write_buffer_size
        if self.ticket.fresh_tokens:
            self.tell()


class Streamed:
    """One streamed answer: a choice a prompt, and the channel they all write to."""

    def __init__(self, wire: Wire, *, interval: int) -> None:
        self.done = asyncio.Event()
        self._wire = wire
        self._interval = interval
        self._role = wire.role()
        self._channel: Channel | None = None
        self._choices: list[_Choice] = []
        self._open = 0

    def submit(self, gate: Gate, speeches: Sequence[Speech], entry: Entry) -> None:
        """Raises AskError or SpecError where one cannot be taken; `withdraw` is due in any case."""
        self._open = len(speeches)
        for index, speech in enumerate(speeches):
            choice = _Choice(self, index)
            choice.ticket = entry.submit(gate, index, speech, choice.tell)
            self._choices.append(choice)

    def withdraw(self, gate: Gate) -> None:
        while self._choices:  # they know this answer: it must not know them when it is over
            gate.withdraw(self._choices.pop().ticket)

    def open(self, channel: Channel) -> None:
        """The headers are out."""
        self._channel = channel
        for choice in self._choices:
            choice.open(channel)

    def plain(self, index: int) -> tuple[bytes, ...]:
        """The framed chunks of one token each that may go out as they are; () while there is more to it."""
        channel, ticket = self._channel, self._choices[index].ticket
        if channel is None or not channel.is_plain or self._interval > 1:
            return ()
        if ticket.finished or ticket.fresh_tokens or not ticket.taken_tokens:
            return ()
        return tuple([channel.framed(word) for word in self._wire.words(index)])

    def deliver(self, index: int) -> None:
        """Sends what is due of a choice: its fresh tokens, and the end after the last."""
        channel, ticket = self._channel, self._choices[index].ticket
        first, fresh = ticket.taken_tokens, ticket.fresh_tokens
        if channel is None or (
            not ticket.finished and ((first and fresh < self._interval) or channel.backed_up)
        ):
            return
        ticket.taken_tokens = first + fresh
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
        tickets = [choice.ticket for choice in self._choices]
        told = [int(ticket.taken_tokens * channel.lying_factor) for ticket in tickets]
        cached = [ticket.request.cached_tokens for ticket in tickets]
        channel.send(self._wire.end(told, cached), tokens, last=True)
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

    @property
    def cached_tokens(self) -> list[int]:
        """Tokens of each prompt that were found in the prefix cache."""
        return [ticket.request.cached_tokens for ticket in self._tickets]

    def submit(self, gate: Gate, speeches: Sequence[Speech], entry: Entry) -> None:
        """Raises AskError or SpecError where one cannot be taken; `withdraw` is due in any case."""
        for index, speech in enumerate(speeches):
            self._tickets.append(entry.submit(gate, index, speech, self._look))

    def withdraw(self, gate: Gate) -> None:
        for ticket in self._tickets:
            gate.withdraw(ticket)

    def _look(self) -> None:
        if all(ticket.finished for ticket in self._tickets):
            self.done.set()
