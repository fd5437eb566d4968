"""Whatever stands where the metrics should be becomes one Sample: signals, or one line that says why not."""

from __future__ import annotations

import asyncio
import gzip
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web

from loadtest.collector.page import PAGE_BYTES_MAX, PageTarget, look_at_page, page_session
from loadtest.origin import ApiKey, parse_origin
from loadtest.records import Sample

PAGES = Path(__file__).parents[2] / "fixtures" / "metrics"
LOADED = (PAGES / "vllm-0.32-loaded.txt").read_bytes()
KEY = "sk-do-not-tell"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def answering(body: bytes, status: int = 200, **headers: str) -> Handler:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(
            body=body, status=status, headers={n.replace("_", "-"): v for n, v in headers.items()}
        )

    return answer


async def look(handler: Handler, *, key: str | None = None, timeout_s: float = 5.0) -> Sample:
    """One look at a server on a free port of this machine whose /metrics is `handler`."""
    app = web.Application()
    app.router.add_get("/metrics", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    target = PageTarget(
        origin=parse_origin(f"http://{host}:{port}"),
        engine="vllm",
        key=ApiKey(key) if key else None,
        timeout_s=timeout_s,
    )
    try:
        async with page_session() as session:
            return await look_at_page(session, target)
    finally:
        await runner.cleanup()


def gap_of(handler: Handler, *, key: str | None = None, timeout_s: float = 5.0) -> str:
    sample = asyncio.run(look(handler, key=key, timeout_s=timeout_s))
    assert sample.gap is not None
    assert sample.signals == {}
    assert sample.gap.isprintable()
    return sample.gap


def test_a_good_page_is_a_sample_with_the_time_its_reading_ended() -> None:
    before_ns = time.perf_counter_ns()
    sample = asyncio.run(look(answering(LOADED)))
    assert (sample.source, sample.gap, sample.labels) == ("engine", None, {"engine": "vllm"})
    assert sample.target.startswith("http://127.0.0.1:")
    assert sample.signals["running"] == 46
    assert before_ns < sample.at_ns < time.perf_counter_ns()


def test_lines_that_could_not_be_read_are_counted_in_the_sample() -> None:
    sample = asyncio.run(look(answering((PAGES / "broken-lines.txt").read_bytes())))
    assert sample.labels == {"engine": "vllm", "skipped_lines": "8"}


def test_plain_text_without_compression_is_asked_for() -> None:
    asked: list[tuple[str, str]] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append((request.headers["Accept"], request.headers["Accept-Encoding"]))
        return web.Response(body=LOADED)

    asyncio.run(look(answer))
    assert asked == [("text/plain;version=0.0.4", "identity")]


def test_a_missing_page_is_a_gap_that_quotes_the_answer() -> None:
    assert gap_of(answering(b'{"detail":"Not\nFound"}\0', 404)) == 'HTTP 404: {"detail":"Not Found"}'


def test_a_quote_is_short_and_printable() -> None:
    gap = gap_of(answering(b"\x1b[31m" + b"x" * 10_000, 500))
    assert gap.startswith("HTTP 500: [31mx")
    assert len(gap) <= len("HTTP 500: ") + 200


def test_a_refused_key_is_not_repeated_in_the_row() -> None:
    assert KEY not in gap_of(answering(f"wrong key: {KEY}".encode(), 401), key=KEY)


def test_a_page_of_html_is_a_gap() -> None:
    gap = gap_of(answering((PAGES / "not-metrics.html").read_bytes(), Content_Type="text/html"))
    assert gap.startswith("no metric of vllm on the page: <!doctype html>")


def test_an_empty_page_is_a_gap() -> None:
    assert gap_of(answering(b"")) == "no metric of vllm on the page: (empty)"


def test_the_page_of_another_engine_is_a_gap() -> None:
    page = (PAGES / "lmdeploy-0.18.txt").read_bytes()
    assert gap_of(answering(page)) == "the page is lmdeploy's, not vllm's"


def test_names_nobody_knows_are_a_gap() -> None:
    assert gap_of(answering(b"vllm:renamed_again 1\n")) == "no known metric name of vllm on the page"


def test_a_page_without_its_end_is_a_gap() -> None:
    assert gap_of(answering(LOADED[:-1])) == "the page was cut off: it does not end in a line feed"


def test_a_connection_that_breaks_within_the_page_is_a_gap() -> None:
    async def break_off(request: web.Request) -> web.StreamResponse:
        reply = web.StreamResponse(headers={"Content-Length": str(len(LOADED))})
        await reply.prepare(request)
        await reply.write(LOADED[:4000])
        assert request.transport is not None
        request.transport.close()
        return reply

    assert gap_of(break_off).startswith("ClientPayloadError")


@pytest.mark.parametrize("bytes_first", [b"", LOADED[:4000]])
def test_a_page_that_does_not_come_in_time_is_a_gap(bytes_first: bytes) -> None:
    async def stall(request: web.Request) -> web.StreamResponse:
        reply = web.StreamResponse()
        if bytes_first:
            await reply.prepare(request)
            await reply.write(bytes_first)
        await asyncio.Event().wait()
        return reply

    assert gap_of(stall, timeout_s=0.2) == "no whole page within 0.2 s"


def test_a_page_without_end_is_given_up_at_the_cap() -> None:
    async def flood(request: web.Request) -> web.StreamResponse:
        reply = web.StreamResponse()
        await reply.prepare(request)
        while True:
            await reply.write(b"#" * 2**20)

    assert gap_of(flood, timeout_s=30.0) == f"the page has more than {PAGE_BYTES_MAX} bytes"


def test_a_compressed_page_is_not_unpacked() -> None:
    gap = gap_of(answering(gzip.compress(LOADED), Content_Encoding="gzip"))
    assert gap == "the page is compressed, though identity was asked for"


def test_a_redirect_is_refused_and_the_key_goes_nowhere_else() -> None:
    keys: list[str | None] = []

    async def elsewhere(request: web.Request) -> web.Response:
        keys.append(request.headers.get("Authorization"))
        return web.Response(body=LOADED)

    async def main() -> Sample:
        app = web.Application()
        app.router.add_get("/metrics", elsewhere)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        other = f"http://127.0.0.1:{runner.addresses[0][1]}/metrics"

        async def redirect(request: web.Request) -> web.Response:
            assert request.headers["Authorization"] == f"Bearer {KEY}"
            return web.Response(status=307, headers={"Location": other})

        try:
            return await look(redirect, key=KEY)
        finally:
            await runner.cleanup()

    assert asyncio.run(main()).gap == "HTTP 307: redirects are refused"
    assert keys == []


def test_a_server_that_is_not_there_is_a_gap() -> None:
    async def main() -> Sample:
        target = PageTarget(origin=parse_origin("http://127.0.0.1:1"), engine="vllm")
        async with page_session() as session:
            return await look_at_page(session, target)

    gap = asyncio.run(main()).gap
    assert gap is not None
    assert gap.startswith("ClientConnectorError")


def test_bytes_that_are_no_http_are_a_gap() -> None:
    async def main() -> Sample:
        async def babble(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"\xff\x00 good day\r\n\r\n")
            writer.close()

        server = await asyncio.start_server(babble, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server, page_session() as session:
            target = PageTarget(origin=parse_origin(f"http://127.0.0.1:{port}"), engine="vllm")
            return await look_at_page(session, target)

    sample = asyncio.run(main())
    assert sample.gap is not None
    assert sample.gap.isprintable()
