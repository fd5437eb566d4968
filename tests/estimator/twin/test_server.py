"""The twin over a real loopback socket: what a client and a scraper see."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from typing import Any

import aiohttp
import pytest
from twin_visits import post, visit

from estimator.twin.command import main
from estimator.twin.server import TwinServer


async def events(response: aiohttp.ClientResponse) -> list[Any]:
    text = (await response.read()).decode()
    data = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert data[-1] == "[DONE]"
    return [json.loads(one) for one in data[:-1]]


def test_the_server_says_who_it_is() -> None:
    async def story(client: aiohttp.ClientSession, _: TwinServer) -> None:
        async with client.get("/v1/models") as response:
            (model,) = (await response.json())["data"]
        assert (model["id"], model["max_model_len"]) == ("tiny", 2048)
        async with client.get("/health") as response:
            assert (response.status, await response.read()) == (200, b"")
        async with client.get("/version") as response:
            assert "twin" in (await response.json())["version"]

    visit(story)


def test_a_streamed_completion_carries_each_token_once_then_usage() -> None:
    async def story(client: aiohttp.ClientSession, server: TwinServer) -> None:
        body = {"prompt": [7] * 40, "max_tokens": 20, "stream": True}
        options = {"stream_options": {"include_usage": True}}
        async with client.post("/v1/completions", json={**body, **options}) as response:
            assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
            *chunks, usage = await events(response)
        texts = "".join(chunk["choices"][0]["text"] for chunk in chunks)
        assert len(texts.split()) == 20
        assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-1] == "length"
        assert usage["usage"] == {"prompt_tokens": 40, "total_tokens": 60, "completion_tokens": 20}
        assert server.ranks[0].engine.pool.used_blocks == 0

    visit(story)


def test_a_chat_begins_with_its_role_chunk() -> None:
    async def story(client: aiohttp.ClientSession, _: TwinServer) -> None:
        body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 3, "stream": True}
        async with client.post("/v1/chat/completions", json=body) as response:
            role, *chunks = await events(response)
        assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == " the tank is"

    visit(story)


def test_several_prompts_are_several_choices_streamed_or_not() -> None:
    async def story(client: aiohttp.ClientSession, _: TwinServer) -> None:
        prompts = {"prompt": ["a b", "c"], "max_tokens": 4}
        whole = await post(client, "/v1/completions", **prompts)
        assert [choice["text"] for choice in whole["choices"]] == [" the tank is filled"] * 2
        assert whole["usage"]["prompt_tokens"] == 3
        async with client.post("/v1/completions", json={**prompts, "stream": True}) as response:
            chunks = [event["choices"][0] for event in await events(response)]
        for index in (0, 1):
            mine = [chunk for chunk in chunks if chunk["index"] == index]
            assert "".join(chunk["text"] for chunk in mine) == " the tank is filled"
            assert [chunk["finish_reason"] for chunk in mine].count("length") == 1

    visit(story)


def test_tokenize_agrees_with_the_usage_of_a_chat() -> None:
    async def story(client: aiohttp.ClientSession, _: TwinServer) -> None:
        messages = [{"role": "user", "content": "how full is the tank"}]
        counted = await post(client, "/tokenize", model="tiny", messages=messages)
        answer = await post(client, "/v1/chat/completions", messages=messages, max_tokens=1)
        assert counted["count"] == len(counted["tokens"]) == answer["usage"]["prompt_tokens"]
        assert counted["max_model_len"] == 2048

    visit(story)


@pytest.mark.parametrize(
    ("path", "payload", "status"),
    [
        ("/v1/completions", b"{bad", 400),
        ("/v1/completions", b"\xff\xfe", 400),
        ("/v1/completions", b"[" * 100_000, 400),
        ("/v1/completions", b'{"model":"nope","prompt":[1]}', 404),
        ("/v1/chat/completions", b"{}", 400),
        ("/tokenize", b"[]", 400),
        ("/nothing", b"{}", 404),
        ("/health", b"{}", 405),
    ],
)
def test_a_wrong_request_is_answered_in_json(path: str, payload: bytes, status: int) -> None:
    async def story(client: aiohttp.ClientSession, server: TwinServer) -> None:
        headers = {"Content-Type": "application/json"}
        async with client.post(path, data=payload, headers=headers) as response:
            assert response.status == status
            body = await response.json()
        assert "error" in body or "detail" in body
        assert not server.ranks[0].engine.has_work

    visit(story)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_disconnects_frees_its_blocks(stream: bool) -> None:
    async def story(client: aiohttp.ClientSession, server: TwinServer) -> None:
        body = {"prompt": [1] * 100, "max_tokens": 1900, "stream": stream}
        asked = asyncio.create_task(client.post("/v1/completions", json=body).__aenter__())
        while not server.ranks[0].engine.running:
            await asyncio.sleep(0)  # a turn for the server, no waiting
        if stream:
            (await asked).close()
        else:
            asked.cancel()
        while server.ranks[0].engine.has_work:
            await asyncio.sleep(0)  # a turn for the server, no waiting
        assert server.ranks[0].engine.pool.used_blocks == 0
        assert server.ranks[0].engine.stats.finished == {"abort": 1}

    visit(story)


def test_metrics_over_http_follow_the_load() -> None:
    async def story(client: aiohttp.ClientSession, server: TwinServer) -> None:
        await asyncio.gather(
            *(post(client, "/v1/completions", prompt=[1] * 32, max_tokens=30) for _ in range(5))
        )
        async with client.get("/metrics") as response:
            page = await response.text()
        labels = 'engine="0",model_name="tiny"'
        assert f"vllm:generation_tokens_total{{{labels}}} 150.0" in page
        assert f"vllm:inter_token_latency_seconds_count{{{labels}}} 145.0" in page
        assert f"vllm:request_queue_time_seconds_count{{{labels}}} 5.0" in page
        assert 'finished_reason="length",model_name="tiny"} 5.0' in page

    visit(story)


def test_a_stream_interval_joins_tokens_but_sends_the_first_alone() -> None:
    async def story(client: aiohttp.ClientSession, _: TwinServer) -> None:
        body = {"prompt": [7] * 4, "max_tokens": 12, "stream": True}
        async with client.post("/v1/completions", json=body) as response:
            chunks = await events(response)
        assert [len(chunk["choices"][0]["text"].split()) for chunk in chunks] == [1, 5, 5, 1]

    visit(story, stream_interval=5)


def test_same_seed_same_lengths_around_the_mean_and_never_below_min_tokens() -> None:
    async def lengths(client: aiohttp.ClientSession, out: list[list[int]]) -> None:
        body = {"prompt": [1], "max_tokens": 200, "min_tokens": 3}
        answers = [await post(client, "/v1/completions", **body) for _ in range(40)]
        out.append([answer["usage"]["completion_tokens"] for answer in answers])

    drawn: list[list[int]] = []
    for _ in range(2):
        visit(lambda client, _: lengths(client, drawn), mean_output_tokens=10, seed=7)
    assert drawn[0] == drawn[1]
    assert min(drawn[0]) > 3
    assert 8 < sum(drawn[0]) / 40 < 20


def test_ignore_eos_goes_to_the_length_asked_for() -> None:
    async def story(client: aiohttp.ClientSession, _: TwinServer) -> None:
        answer = await post(client, "/v1/completions", prompt=[1], max_tokens=50, ignore_eos=True)
        assert answer["usage"]["completion_tokens"] == 50
        assert answer["choices"][0]["finish_reason"] == "length"

    visit(story, mean_output_tokens=1)


def test_a_key_is_asked_for_below_v1_alone_and_never_shown() -> None:
    async def story(client: aiohttp.ClientSession, server: TwinServer) -> None:
        async with client.get("/v1/models") as response:
            assert response.status == 401
        async with client.get("/v1/models", headers={"Authorization": "Bearer s3cret"}) as response:
            assert response.status == 200
        async with client.get("/metrics") as response:
            assert response.status == 200
        assert "s3cret" not in repr(server.options)

    visit(story, api_key="s3cret")


def start(*flags: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "estimator.twin.server", "--port", "0", *flags]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("how", ["term", "stdin"])
def test_the_command_says_one_line_and_ends_cleanly(how: str) -> None:
    with start(
        "--exit-with-stdin", "--served-model-name", "qwen", "--num-gpu-blocks-override", "100"
    ) as twin:
        assert twin.stdin is not None
        assert twin.stdout is not None
        line = twin.stdout.readline()
        assert line.startswith("twin ready on http://127.0.0.1:")
        assert line.endswith(" model=qwen\n")
        if how == "term":
            twin.send_signal(signal.SIGTERM)
        else:
            twin.stdin.close()
        assert twin.wait(timeout=10) == 0
        assert twin.stdout.read() == ""


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--profile", "tyni"], "did you mean 'tiny'"),
        (["--num-gpu-blocks-override", "64"], "needs 64 blocks and the cache has 63"),
        (["--port", "70000"], "choose another --port"),
        (["--max-num-seqs", "0"], "max_num_seqs must be at least 1"),
        (["--stream-interval", "0"], "--stream-interval must be at least 1"),
        (["--time-scale", "nan"], "--time-scale must be more than 0"),
        (["--mean-output-tokens", "0.5"], "--mean-output-tokens must be at least 1"),
        (["--faults", "nowhere.yaml"], "cannot read nowhere.yaml"),
        (["--max-num-queued-reqs", "-1"], "--max-num-queued-reqs must be at least 0"),
        (["--data-parallel-size", "0"], "--data-parallel-size must be from 1 to 64"),
        (["--engine", "lmdeploy", "--data-parallel-size", "2"], "--data-parallel-size is vLLM's"),
        (["--engine", "lmdeploy", "--enable-prefix-caching"], "prefix caching is modelled for vLLM alone"),
        (["--engine", "lmdeploy", "--max-num-queued-reqs", "9"], "--max-num-queued-reqs is vLLM's"),
    ],
)
def test_a_wrong_flag_is_one_sentence_and_exit_2(
    flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(flags) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
