"""A twin that has served and lost many clients keeps nothing of them."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import psutil
import pytest
from twin_visits import TINY, listening

from estimator.twin.answers import Entry, Gathered, Streamed
from estimator.twin.engine import Engine
from estimator.twin.options import ServerOptions
from estimator.twin.profile import TwinProfile
from estimator.twin.server import TwinServer
from estimator.twin.speech import Speech

REQUESTS = 300
AT_ONCE = 40
TOKENS = 30
PATIENCE_S = 10
CACHED = replace(TINY, enable_prefix_caching=True)
CUTS = ("within its body", "before its answer", "in its stream")
"""Where a client vanishes."""


def post_of(number: int, *, stream: bool) -> bytes:
    messages = [{"role": "user", "content": f"question {number} of many " * 20}]
    body = json.dumps({"messages": messages, "max_tokens": TOKENS, "stream": stream}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: twin\r\nConnection: close\r\n"
    return f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


async def ask(port: int, number: int) -> int:
    """How often the twin answered in full: 0 for the third of all clients that vanishes."""
    cut = CUTS[number // 3 % len(CUTS)] if number % 3 == 0 else ""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    sent = post_of(number, stream=cut == "in its stream" or number % 2 == 0)
    writer.write(sent[: len(sent) // 2] if cut == "within its body" else sent)
    await writer.drain()
    if not cut:
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 200 "), answer
    elif cut == "in its stream":
        for _ in range(5):
            await reader.readuntil(b"data: ")
    writer.transport.abort()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    return not cut


def traces(server: TwinServer) -> dict[str, Any]:
    """Everything that requests make more of while they are there."""
    kept: dict[str, Any] = {
        "answers": server.gate.under_way,
        "tasks": len(asyncio.all_tasks()),
        "file descriptors": psutil.Process().num_fds(),
    }
    for rank in server.ranks:
        engine = rank.engine
        blocks = engine.pool.usable_blocks - engine.pool.free_blocks, engine.pool.used_blocks
        in_engine = len(engine.running), len(engine.waiting), engine.has_work
        kept[rank.telemetry.labels["engine"]] = rank.loop.in_flight, *in_engine, *blocks
    return kept


@pytest.mark.parametrize(
    ("profile", "options"),
    [
        (TINY, {}),
        (CACHED, {"data_parallel_size": 2}),
        (TINY, {"engine": "lmdeploy"}),
        (TINY, {"engine": "lmdeploy", "backend": "pytorch"}),
    ],
    ids=["vllm", "two ranks with cached prefixes", "turbomind", "pytorch"],
)
def test_nothing_is_left_of_requests_though_a_third_of_their_clients_vanish(
    profile: TwinProfile, options: dict[str, Any]
) -> None:
    async def tell() -> None:
        server = TwinServer(profile, ServerOptions(**options))
        async with listening(server) as port:
            before = traces(server)
            whole = 0
            for first in range(0, REQUESTS, AT_ONCE):
                numbers = range(first, min(REQUESTS, first + AT_ONCE))
                whole += sum(await asyncio.gather(*(ask(port, number) for number in numbers)))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE_S):
                    while traces(server) != before:
                        await asyncio.sleep(0)  # a turn for the server, no waiting
            assert traces(server) == before
            ends = Counter[str]()
            for rank in server.ranks:
                ends.update(rank.engine.stats.finished)
            assert (whole, ends["length"]) == (REQUESTS * 2 // 3, REQUESTS * 2 // 3)
            assert REQUESTS // 9 <= ends["abort"] <= REQUESTS // 3

    asyncio.run(asyncio.wait_for(tell(), 60))


@pytest.fixture
def _without_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


class Mute:
    """A wire on which nothing goes out."""

    def role(self) -> bytes:
        return b""

    def words(self, _index: int) -> tuple[bytes, ...]:
        return ()

    def tokens(self, _index: int, _first: int, _count: int) -> bytes:
        return b""

    def end(self, _output_tokens: Any, _cached_tokens: Any) -> bytes:
        return b""


@pytest.mark.usefixtures("_without_collector")
@pytest.mark.parametrize("answer", [lambda: Streamed(Mute(), interval=1), Gathered], ids=["stream", "whole"])
def test_an_answer_that_is_over_goes_at_once_and_waits_for_no_collector(answer: Any) -> None:
    async def tell() -> None:
        gate = TwinServer(TINY).gate
        speech = Speech(prompt_tokens=8, output_tokens=8, finish_reason="length")
        under_way = answer()
        under_way.submit(gate, [speech, speech], Entry(answer_id="a", max_tokens=8))
        under_way.withdraw(gate)
        there = weakref.ref(under_way)
        del under_way
        assert there() is None

    asyncio.run(tell())


class Name:
    """Of a block: an object that tells whether its request is still known."""


@pytest.mark.usefixtures("_without_collector")
def test_a_request_that_is_aborted_is_not_kept_until_the_step_that_would_have_ended_it() -> None:
    engine, name = Engine(TINY.limits), Name()
    there = weakref.ref(name)
    engine.add("stays", 8, 1500)
    engine.add("vanishes", 8, 1500, prefix=((name, 32),))
    del name
    for step in range(3 * TINY.block_size):
        if step == TINY.block_size:
            assert engine.abort("vanishes")
        engine.settle(engine.step())
    assert there() is None
    assert [request.request_id for request in engine.running] == ["stays"]
