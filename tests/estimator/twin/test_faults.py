"""Each fault does on the wire what its name says, and none happens unasked."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web

from estimator.twin.cost import StepCost
from estimator.twin.faults import KINDS, Fault, parse_header
from estimator.twin.options import ServerOptions
from estimator.twin.profile import read_profile
from estimator.twin.server import TwinServer, runner_of

QUICK = StepCost(fixed_s=0.001, compute_s_per_token=0, weights_s=0.0, context_s_per_token=0, sequence_s=0)
TINY = replace(read_profile("tiny"), step_cost=QUICK)
BODY = {"prompt": [1], "max_tokens": 20, "stream": True, "stream_options": {"include_usage": True}}
SILENCE_S = 0.3
"""Long enough for 300 steps."""
Story = Callable[["Client", TwinServer], Awaitable[None]]


class Client:
    """Raw bytes in and out: what the faults are about."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._writers: list[asyncio.StreamWriter] = []

    async def send(self, fault: str | None = None, *, path: str = "/v1/completions", body: Any = BODY) -> Any:
        """A reader after the request has gone out."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        payload = b"" if body is None else json.dumps(body).encode()
        lines = [f"{'GET' if body is None else 'POST'} {path} HTTP/1.1", "Host: twin", "Connection: close"]
        lines += ["Content-Type: application/json", f"Content-Length: {len(payload)}"]
        lines += [f"x-ullage-fault: {fault}"] if fault else []
        writer.write("\r\n".join([*lines, "", ""]).encode() + payload)
        await writer.drain()
        self._writers.append(writer)
        return reader

    async def close(self) -> None:
        for writer in self._writers:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def ask(self, fault: str | None = None, **how: Any) -> bytes:
        """Everything until the server closes."""
        reader = await self.send(fault, **how)
        return bytes(await reader.read())


def tell(story: Story, *faults: Fault, test_mode: bool = True) -> None:
    async def run() -> None:
        server = TwinServer(TINY, ServerOptions(faults=faults, test_mode=test_mode))
        runner = runner_of(server)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        client = Client(runner.addresses[0][1])
        try:
            await story(client, server)
        finally:
            await client.close()
            await runner.cleanup()

    asyncio.run(asyncio.wait_for(run(), 20))


async def heard(reader: asyncio.StreamReader) -> tuple[bytes, type[BaseException] | None]:
    """Everything until the end, a reset or silence, and which of them it was."""
    received = b""
    try:
        while piece := await asyncio.wait_for(reader.read(65536), SILENCE_S):
            received += piece
    except (ConnectionResetError, TimeoutError) as error:
        return received, type(error)
    return received, None


def chunks(answer: bytes) -> list[bytes]:
    body = answer.partition(b"\r\n\r\n")[2]
    found = []
    while b"\r\n" in body:
        size, body = body.split(b"\r\n", 1)
        found.append(body[: int(size, 16)])
        body = body[int(size, 16) + 2 :]
    return found


def events(answer: bytes) -> list[Any]:
    data = b"".join(chunks(answer)).decode().split("\n\n")
    return [json.loads(one.removeprefix("data: ")) for one in data if one.startswith("data: {")]


def texts(answer: bytes) -> list[str]:
    return [choice["text"] for event in events(answer) for choice in event.get("choices", [])]


@pytest.mark.parametrize(("name", "status"), [("rate_limited", 429), ("unavailable", 503)])
@pytest.mark.parametrize("after", ["0", "-1", "1e9", "soon", "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_a_refusal_carries_the_retry_after_as_it_stands(name: str, status: int, after: str) -> None:
    async def story(client: Client, _: TwinServer) -> None:
        answer = await client.ask(f"{name}={after}")
        assert answer.startswith(f"HTTP/1.1 {status} ".encode())
        assert f"Retry-After: {after}\r\n".encode() in answer

    tell(story)


def test_a_redirect_points_to_another_origin() -> None:
    async def story(client: Client, _: TwinServer) -> None:
        answer = await client.ask("redirect=http://elsewhere.test")
        assert answer.startswith(b"HTTP/1.1 307 ")
        assert b"Location: http://elsewhere.test/v1/completions\r\n" in answer

    tell(story)


def test_half_open_reads_and_never_answers() -> None:
    async def story(client: Client, server: TwinServer) -> None:
        reader = await client.send("half_open")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), SILENCE_S)
        assert not server.ranks[0].engine.has_work

    tell(story)


def test_dying_mid_stream_leaves_no_end_and_frees_the_blocks() -> None:
    async def story(client: Client, server: TwinServer) -> None:
        reader = await client.send("die_mid_stream=4")
        received, ended = await heard(reader)
        assert ended is ConnectionResetError
        assert b"[DONE]" not in received
        while server.ranks[0].engine.has_work:
            await asyncio.sleep(0)  # a turn for the server, no waiting
        assert server.ranks[0].engine.pool.used_blocks == 0

    tell(story)


def test_a_server_that_stops_talking_keeps_the_connection() -> None:
    async def story(client: Client, server: TwinServer) -> None:
        reader = await client.send("stop_talking=4")
        received, ended = await heard(reader)
        assert ended is TimeoutError
        assert len(texts(received)) == 4
        assert server.ranks[0].engine.stats.finished["length"] == 1

    tell(story)


def test_an_error_frame_comes_in_a_200_stream() -> None:
    async def story(client: Client, _: TwinServer) -> None:
        answer = await client.ask("error_frame=4")
        assert answer.startswith(b"HTTP/1.1 200 ")
        *tokens, error = events(answer)
        assert len(tokens) == 4
        assert error["error"]["code"] == 500
        assert answer.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")

    tell(story)


@pytest.mark.parametrize("size", [1, 7, 200, 333])
def test_truncation_ends_the_body_at_that_byte(size: int) -> None:
    async def story(client: Client, _: TwinServer) -> None:
        answer = await client.ask(f"truncate={size}")
        assert len(b"".join(chunks(answer))) == size
        assert not answer.endswith(b"0\r\n\r\n")

    tell(story)


def test_usage_can_lie_about_what_was_sent() -> None:
    async def story(client: Client, _: TwinServer) -> None:
        answer = await client.ask("lying_usage=3")
        assert len(texts(answer)) == 20
        assert events(answer)[-1]["usage"]["completion_tokens"] == 60

    tell(story)


def test_an_early_end_mark_comes_in_spite_of_ignore_eos() -> None:
    async def story(client: Client, _: TwinServer) -> None:
        answer = await client.ask("early_eos=5", body={**BODY, "ignore_eos": True})
        assert events(answer)[-1]["usage"]["completion_tokens"] == 5
        assert events(answer)[-2]["choices"][0]["finish_reason"] == "stop"

    tell(story)


def test_a_character_is_cut_by_the_end_of_a_chunk_and_whole_in_the_body() -> None:
    async def story(client: Client, _: TwinServer) -> None:
        answer = await client.ask("cut_utf8")
        torn = 0
        for chunk in chunks(answer):
            try:
                chunk.decode()
            except UnicodeDecodeError:
                torn += 1
        assert torn >= 2
        assert "tänk€" in "".join(texts(answer))

    tell(story)


def test_coalesced_events_come_several_to_a_chunk_and_none_is_lost() -> None:
    async def story(client: Client, _: TwinServer) -> None:
        answer = await client.ask("coalesced=8")
        assert max(chunk.count(b"data: ") for chunk in chunks(answer)) == 8
        assert len(texts(answer)) == 20
        assert b"[DONE]" in answer

    tell(story)


def test_metrics_can_be_renamed_slow_and_reset() -> None:
    async def story(client: Client, server: TwinServer) -> None:
        await client.ask()
        page = await client.ask("renamed_metrics=llm", path="/metrics", body=None)
        assert b"vllm:" not in page
        assert b"llm:num_requests_running" in page
        reader = await client.send("slow_metrics=60", path="/metrics", body=None)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), SILENCE_S)
        assert server.ranks[0].telemetry.since_reset("generation_tokens") == 20
        await client.ask("counters_reset", path="/metrics", body=None)
        assert server.ranks[0].telemetry.since_reset("generation_tokens") == 0

    tell(story)


def test_leaked_blocks_stay_in_use_while_nothing_runs() -> None:
    async def story(client: Client, server: TwinServer) -> None:
        for _ in range(2):
            await client.ask("leak=3")
        pool = server.ranks[0].engine.pool
        assert (pool.used_blocks, len(server.ranks[0].engine.running)) == (6, 0)
        await client.ask("leak=100000")  # more than there are: the rest is all it can take
        assert pool.free_blocks == 0

    with contextlib.suppress(TimeoutError):  # nothing fits any more, so the last one is not answered
        tell(story)


def test_a_hung_engine_answers_health_and_nothing_else() -> None:
    async def story(client: Client, _: TwinServer) -> None:
        reader = await client.send("engine_hung", body={"prompt": [1]})
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), SILENCE_S)
        assert (await client.ask(path="/health", body=None)).startswith(b"HTTP/1.1 200 ")
        page = await client.ask(path="/metrics", body=None)
        assert b'vllm:num_requests_waiting{engine="0",model_name="tiny"} 1.0' in page

    tell(story)


def test_a_dead_engine_says_so_everywhere() -> None:
    async def story(client: Client, _: TwinServer) -> None:
        assert (await client.ask("engine_dead")).startswith(b"HTTP/1.1 500 ")
        assert (await client.ask()).startswith(b"HTTP/1.1 500 ")
        assert (await client.ask(path="/health", body=None)).startswith(b"HTTP/1.1 503 ")

    tell(story)


def test_a_throttled_engine_takes_three_times_as_long_a_step() -> None:
    async def story(client: Client, server: TwinServer) -> None:
        await client.ask("slow_down=3")
        assert server.ranks[0].loop.time_scale == 3.0
        await client.ask("slow_down=3")
        assert server.ranks[0].loop.time_scale == 3.0

    tell(story)


@pytest.mark.parametrize("name", KINDS)
def test_outside_test_mode_the_header_does_nothing(name: str) -> None:
    async def story(client: Client, server: TwinServer) -> None:
        answer = await client.ask(name)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert len(texts(answer)) == 20
        assert server.ranks[0].loop.time_scale == 1.0

    tell(story, test_mode=False)


def test_a_fault_of_the_file_meets_every_nth_request_in_its_time() -> None:
    async def story(client: Client, _: TwinServer) -> None:
        met = [(await client.ask()).startswith(b"HTTP/1.1 429") for _ in range(6)]
        assert met == [False, False, True, False, False, True]

    late = Fault(name="unavailable", from_s=1000.0)
    tell(story, Fault(name="rate_limited", every=3), late, test_mode=False)


def test_a_wrong_header_is_a_400() -> None:
    async def story(client: Client, _: TwinServer) -> None:
        assert (await client.ask("die")).startswith(b"HTTP/1.1 400 ")

    tell(story)
    assert parse_header("truncate=12").number == 12
    assert parse_header("truncate").number == 200
