"""Fetches one /metrics page and makes one Sample of it: what was seen, or one line that says why not."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Final

import aiohttp

from estimator.spec import EngineName
from loadtest.access import Access, client_context
from loadtest.collector.engine_metrics import EngineReading, read_engine_page
from loadtest.origin import ApiKey, Origin
from loadtest.records import Sample
from loadtest.telemetry import METRICS_PATH

PAGE_BYTES_MAX: Final = 16 * 2**20
PIECE_BYTES: Final = 65_536
QUOTED_BYTES_MAX: Final = 200
TIMEOUT_S: Final = 2.0
OK: Final = 200
REDIRECTS: Final = range(300, 400)


@dataclass(frozen=True, slots=True, kw_only=True)
class PageTarget:
    """A server's metrics page. The key is sent to this origin and, redirects being refused, nowhere else."""

    origin: Origin
    engine: EngineName
    path: str = METRICS_PATH
    key: ApiKey | None = None
    timeout_s: float = TIMEOUT_S

    @property
    def url(self) -> str:
        return f"{self.origin}{self.path}"

    @property
    def shown(self) -> str:
        """What it is called in rows."""
        return str(self.origin) if self.path == METRICS_PATH else self.url


class PageError(Exception):
    """No page: the reason, in one printable line."""


def page_session(access: Access | None = None) -> aiohttp.ClientSession:
    """A session that takes nothing from its surroundings: no proxy, no netrc, no cookies, no compression."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=client_context(access or Access())),
        trust_env=False,
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        # vLLM answers text 1.0.0 whatever is asked; LMDeploy would send OpenMetrics to who accepts it
        headers={"Accept": "text/plain;version=0.0.4", "Accept-Encoding": "identity"},
    )


async def look_at_page(session: aiohttp.ClientSession, target: PageTarget) -> Sample:
    """One look. `at_ns` is the moment the whole page had been read, or the look had failed."""
    page: bytes | None = None
    gap: str | None = None
    try:
        page = await fetch(session, target.url, target.key, timeout_s=target.timeout_s)
    except PageError as error:
        gap = str(error)
    at_ns = time.perf_counter_ns()
    if page is None:
        return _sample(at_ns, target, EngineReading(), gap)
    # in a thread: a hostile page of 16 MB takes seconds to read, and a signal must be heard meanwhile
    reading = await asyncio.to_thread(read_engine_page, page.decode("utf-8", errors="replace"))
    return _sample(at_ns, target, reading, _page_gap(reading, target, page))


def _sample(at_ns: int, target: PageTarget, reading: EngineReading, gap: str | None) -> Sample:
    labels: dict[str, str] = {"engine": target.engine}
    if reading.skipped_lines:
        labels["skipped_lines"] = str(reading.skipped_lines)
    return Sample(
        at_ns=at_ns,
        source="engine",
        target=target.shown,
        gap=gap,
        signals={} if gap else reading.signals,
        labels=labels,
    )


def _page_gap(reading: EngineReading, target: PageTarget, page: bytes) -> str | None:
    """Why a page that came whole over the wire shows nothing to go by, if it does."""
    if reading.engine is None:
        return f"no metric of {target.engine} on the page: {quoted(page, target.key)}"
    if reading.engine != target.engine:
        return f"the page is {reading.engine}'s, not {target.engine}'s"
    if not page.endswith(b"\n"):
        return "the page was cut off: it does not end in a line feed"
    if not reading.signals:
        return f"no known metric name of {target.engine} on the page"
    return None


async def fetch(
    session: aiohttp.ClientSession, url: str, key: ApiKey | None, *, timeout_s: float = TIMEOUT_S
) -> bytes:
    """The whole body of a 200. Raises PageError, whatever happened: the next tick must come."""
    try:
        async with asyncio.timeout(timeout_s):
            return await _fetch(session, url, key)
    except PageError:
        raise
    except TimeoutError as error:
        raise PageError(f"no whole page within {timeout_s:g} s") from error
    except Exception as error:  # refused, reset, unparsable
        said = _printable(str(error).encode(errors="replace"))
        raise PageError(f"{type(error).__name__}: {said}") from error


async def _fetch(session: aiohttp.ClientSession, url: str, key: ApiKey | None) -> bytes:
    headers = dict([key.header()]) if key else {}
    async with session.get(url, headers=headers, allow_redirects=False) as reply:
        if reply.status in REDIRECTS:
            raise PageError(f"HTTP {reply.status}: redirects are refused")
        if reply.headers.get("Content-Encoding", "identity") != "identity":
            raise PageError("the page is compressed, though identity was asked for")
        if reply.status != OK:
            start = await reply.content.read(QUOTED_BYTES_MAX)
            raise PageError(f"HTTP {reply.status}: {quoted(start, key)}")
        page = bytearray()
        async for piece in reply.content.iter_chunked(PIECE_BYTES):
            page += piece
            if len(page) > PAGE_BYTES_MAX:
                raise PageError(f"the page has more than {PAGE_BYTES_MAX} bytes")
        return bytes(page)


def quoted(body: bytes, key: ApiKey | None) -> str:
    """The beginning of what was answered, in one line; nothing where the request carried the key."""
    # servers repeat a key they refuse, and what stands in a row will stand in a report
    return "(not quoted: the request carried the key)" if key else _printable(body) or "(empty)"


def _printable(body: bytes) -> str:
    text = body[:QUOTED_BYTES_MAX].decode("ascii", errors="replace")
    return " ".join("".join(ch if ch.isprintable() and ch.isascii() else " " for ch in text).split())
