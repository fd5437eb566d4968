"""Sends one wave of streams and notes when each chunk came, and what the server's own clocks say of it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp
from aiohttp.http import HttpProcessingError

from estimator.errors import EXIT_UNREACHABLE, PlainError
from loadtest.calibrator.waves import Wave
from loadtest.collector.page import page_session
from loadtest.origin import ApiKey, Origin

WAVE_S_MAX: Final = 60.0
PAGE_BYTES_MAX: Final = 16 * 2**20
SETTLE_S: Final = 0.15
"""Until the server's counters have the last request of a wave."""
CLOCKS: Final = {
    "queue_s": ("request_queue_time_seconds_sum", "request_queue_time_seconds_count"),
    "prefill_s": ("request_prefill_time_seconds_sum", "request_prefill_time_seconds_count"),
}
CPU: Final = "process_cpu_seconds_total"


class ProbeError(PlainError):
    """The server did not answer a wave as a streaming server does."""

    exit_code = EXIT_UNREACHABLE


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """One request, seconds on this machine's steady clock."""

    sent_s: float
    chunks_s: tuple[float, ...]
    """When each chunk with tokens came."""
    output_tokens: int
    """By the server's usage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WaveSeen:
    """A wave and what was seen of it. `server_s`: mean seconds a request spent, by the engine's clocks.

    cpu_s: processor time of the API server's process; None where the page does not show it.
    """

    wave: Wave
    streams: tuple[Stream, ...]
    server_s: Mapping[str, float] = field(default_factory=dict)
    cpu_s: float | None = None


@dataclass(slots=True, kw_only=True)
class Prober:
    """Streams to one server, one wave after the other."""

    origin: Origin
    key: ApiKey | None
    path: str
    """/v1/completions or /v1/chat/completions."""

    async def run(self, plan: Sequence[tuple[Wave, Sequence[Mapping[str, Any]]]], say: Any) -> list[WaveSeen]:
        """Every wave with its request bodies; `say(number)` after each. Raises ProbeError."""
        seen = []
        async with page_session(self.origin.access) as session:
            for number, (wave, bodies) in enumerate(plan, 1):
                try:
                    async with asyncio.timeout(WAVE_S_MAX):
                        seen.append(await self._wave(session, wave, bodies))
                except TimeoutError:
                    raise ProbeError(
                        f"{wave.streams} streams of {wave.input_tokens} + {wave.output_tokens} tokens took "
                        f"over {WAVE_S_MAX:g} s: the server is busy, or too slow for light load to measure it"
                    ) from None
                except _Unreadable as error:
                    raise ProbeError(
                        f"{self.origin}{self.path} streamed an event that {error}: "
                        "look at what stands before the engine"
                    ) from error
                except (aiohttp.ClientError, OSError) as error:
                    raise ProbeError(
                        f"{self.origin} broke off ({type(error).__name__}); is it still up?"
                    ) from error
                say(number)
        return seen

    async def _wave(
        self, session: aiohttp.ClientSession, wave: Wave, bodies: Sequence[Mapping[str, Any]]
    ) -> WaveSeen:
        before = await self._page(session)
        streams = await asyncio.gather(*(self._stream(session, json.dumps(body).encode()) for body in bodies))
        await asyncio.sleep(SETTLE_S)
        after = await self._page(session)
        fresh = {name: after[name] - before[name] for name in after if name in before}
        server_s = {
            name: fresh[total] / fresh[count]
            for name, (total, count) in CLOCKS.items()
            if fresh.get(count) == len(bodies)  # someone else's requests would be in the mean too
        }
        return WaveSeen(wave=wave, streams=tuple(streams), server_s=server_s, cpu_s=fresh.get(CPU))

    async def _stream(self, session: aiohttp.ClientSession, body: bytes) -> Stream:
        headers = {"Content-Type": "application/json", **(dict([self.key.header()]) if self.key else {})}
        chunks_s: list[float] = []
        sent_s, tokens = time.perf_counter(), 0
        async with session.post(
            f"{self.origin}{self.path}", data=body, headers=headers, allow_redirects=False
        ) as reply:
            if reply.status != 200:
                raise ProbeError(
                    f"{self.origin}{self.path} answered {reply.status}, not a stream; "
                    "set ULLAGE_API_KEY if it asks for a key"
                )
            async for line in _lines(reply):
                at_s = time.perf_counter()
                if not line.startswith(b"data: {"):
                    continue
                event = _event(line.removeprefix(b"data: "))
                choice = _first(event.get("choices"))
                if choice is not None and (chunks_s or not _is_greeting(choice)):
                    chunks_s.append(at_s)
                tokens = _counted(event.get("usage"), tokens)
        if not chunks_s:
            raise ProbeError(f"{self.origin}{self.path} streamed no token: is it an OpenAI-style server?")
        return Stream(sent_s=sent_s, chunks_s=tuple(chunks_s), output_tokens=tokens or len(chunks_s))

    async def _page(self, session: aiohttp.ClientSession) -> dict[str, float]:
        """Sums over all series of the clocks above; empty where there is no page."""
        headers = dict([self.key.header()]) if self.key else {}
        url = f"{self.origin}/metrics"
        async with session.get(url, headers=headers, allow_redirects=False) as reply:
            if reply.status != 200:
                return {}
            return _sums((await reply.content.read(PAGE_BYTES_MAX)).decode("utf-8", errors="replace"))


class _Unreadable(Exception):  # noqa: N818  (reads as what happened)
    """An event that is none; its words are left out, for they may be anything."""


async def _lines(reply: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """As they come. Raises _Unreadable for one that does not end."""
    try:
        async for line in reply.content:
            yield line
    except HttpProcessingError as error:
        raise _Unreadable("is too long") from error


def _event(data: bytes) -> Mapping[str, Any]:
    """An object by its first byte. Raises _Unreadable."""
    try:
        event: Mapping[str, Any] = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _Unreadable(f"is no JSON ({len(data)} bytes)") from error
    return event


def _first(choices: Any) -> Mapping[str, Any] | None:
    choice = choices[0] if isinstance(choices, list) and choices else None
    return choice if isinstance(choice, dict) else None


def _counted(usage: Any, before: int) -> int:
    """The tokens that a usage tells of; those of the one before where there is none."""
    tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return tokens if type(tokens) is int and tokens >= 0 else before


def _is_greeting(choice: Mapping[str, Any]) -> bool:
    """A chat begins with its role, before there is a token. Otherwise a token may have no text of its own."""
    delta = choice.get("delta")
    return isinstance(delta, dict) and not (delta.get("content") or delta.get("reasoning_content"))


def _sums(page: str) -> dict[str, float]:
    wanted = {name for pair in CLOCKS.values() for name in pair} | {CPU}
    found: dict[str, float] = {}
    for line in page.splitlines():
        name = line.partition("{")[0].partition(" ")[0].partition(":")
        short = name[2] or name[0]
        if short in wanted:
            try:
                found[short] = found.get(short, 0.0) + float(line.rsplit(" ", 1)[1])
            except (ValueError, IndexError):
                continue
    return found
