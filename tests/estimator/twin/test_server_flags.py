"""Prefix caching, data-parallel ranks and queue limits over a real loopback socket."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from twin_visits import QUICK, TINY, post, visit

from estimator.spec import SpecError
from estimator.twin.command import parser_of, profile_of
from estimator.twin.cost import FrontEndCost, ServerCost
from estimator.twin.cost_file import MeasuredCost, write_cost
from estimator.twin.faults import Fault
from estimator.twin.options import ServerOptions
from estimator.twin.server import TwinServer


async def talk(client: aiohttp.ClientSession, *said: str, **more: Any) -> Any:
    """Messages of user and assistant by turns."""
    roles = ("user", "assistant")
    messages = [{"role": roles[turn % 2], "content": text} for turn, text in enumerate(said)]
    return await post(client, "/v1/chat/completions", messages=messages, max_tokens=100, **more)


def test_the_next_turn_of_a_chat_is_cached_with_the_answer_that_came_back() -> None:
    async def story(client: aiohttp.ClientSession, server: TwinServer) -> None:
        question = "fill the tank " * 20
        first = await talk(client, question)
        assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
        answer = first["choices"][0]["message"]["content"]
        cached = (await talk(client, question, answer, "more"))["usage"]["prompt_tokens_details"]
        # 67 + 100 tokens of the first turn are known, all but the last one computed: five blocks of 32
        assert cached == {"cached_tokens": 160, "created_cache_tokens": 0, "multimodal_tokens": None}
        async with client.get("/metrics") as response:
            page = await response.text()
        labels = '{engine="0",model_name="tiny"}'
        assert f"vllm:prefix_cache_queries_total{labels} {67.0 + 67 + 100 + 4 + 5}" in page
        assert f"vllm:prefix_cache_hits_total{labels} 160.0" in page
        assert 'enable_prefix_caching="True"' in page
        assert 'source="local_cache_hit"} 160.0' in page

    caching = replace(TINY, enable_prefix_caching=True)
    visit(story, caching, enable_prompt_tokens_details=True)


def test_without_the_flags_nothing_is_cached_or_told() -> None:
    async def story(client: aiohttp.ClientSession, server: TwinServer) -> None:
        for _ in range(2):
            answer = await post(client, "/v1/completions", prompt=[1] * 200)
        assert answer["usage"]["prompt_tokens_details"] is None
        assert server.ranks[0].engine.stats.prefix_cache_queries == 0

    visit(story)


def test_ranks_share_the_load_and_show_it_by_engine() -> None:
    async def story(client: aiohttp.ClientSession, server: TwinServer) -> None:
        ask = (post(client, "/v1/completions", prompt=[1] * 32, max_tokens=30) for _ in range(8))
        await asyncio.gather(*ask)
        async with client.get("/metrics") as response:
            page = await response.text()
        for engine in range(4):
            labels = f'{{engine="{engine}",model_name="tiny"}}'
            assert f"vllm:generation_tokens_total{labels} 60.0" in page
            assert f'num_gpu_blocks="{4 * TINY.num_gpu_blocks}"' in page  # vLLM shows the sum beside each
        assert page.count("# TYPE vllm:generation_tokens_total counter") == 1
        assert len({id(rank.engine.pool) for rank in server.ranks}) == 4

    visit(story, data_parallel_size=4)


def test_a_client_can_name_its_rank() -> None:
    async def story(client: aiohttp.ClientSession, server: TwinServer) -> None:
        headers = {"X-data-parallel-rank": "1"}
        for _ in range(3):
            async with client.post("/v1/completions", json={"prompt": [1]}, headers=headers) as response:
                assert response.status == 200
        assert [rank.engine.stats.prompt_tokens for rank in server.ranks] == [0, 3]

    visit(story, data_parallel_size=2)


def test_a_full_queue_is_503_counted_and_over_when_somebody_leaves() -> None:
    async def story(client: aiohttp.ClientSession, server: TwinServer) -> None:
        body = {"prompt": [1] * 8, "max_tokens": 1900, "stream": True}
        held = await client.post("/v1/completions", json=body)
        async with client.post("/v1/completions", json={"prompt": ["a", "b"]}) as response:
            assert response.status == 503
            assert (await response.json())["error"]["type"] == "Service Unavailable"
        assert server.ranks[0].loop.in_flight == 1  # no trace of the refused one, nor of its first prompt
        async with client.get("/metrics") as response:
            counted = 'vllm:admission_rejections_total{model_name="tiny",reason="max_num_queued_reqs"} 1.0'
            assert counted in await response.text()
        held.close()
        while server.ranks[0].loop.in_flight:
            await asyncio.sleep(0)  # a turn for the server, no waiting
        await post(client, "/v1/completions", prompt=[1], max_tokens=2)

    visit(story, max_num_queued_reqs=2)


def test_one_of_two_replicas_can_be_slow() -> None:
    async def story(client: aiohttp.ClientSession, server: TwinServer) -> None:
        headers = {"x-ullage-fault": "slow_replica=20"}
        async with client.post("/v1/completions", json={"prompt": [1]}, headers=headers) as response:
            assert response.status == 200
        assert [rank.loop.time_scale for rank in server.ranks] == [1.0, 20.0]
        await asyncio.gather(*(post(client, "/v1/completions", prompt=[1], max_tokens=20) for _ in range(4)))
        slow = server.ranks[1].telemetry.tallies["itl"]
        count = dict(slow.cumulative)["+Inf"]
        assert count == 2 * 19
        assert slow.total / count > 15 * (QUICK.fixed_s + QUICK.weights_s)

    visit(story, data_parallel_size=2, test_mode=True)


def test_a_slow_replica_needs_a_second_one() -> None:
    async def story(client: aiohttp.ClientSession, _: TwinServer) -> None:
        headers = {"x-ullage-fault": "slow_replica"}
        async with client.post("/v1/completions", json={"prompt": [1]}, headers=headers) as response:
            assert response.status == 400
            assert "--data-parallel-size" in (await response.json())["error"]["message"]

    visit(story, test_mode=True)
    with pytest.raises(SpecError, match="--data-parallel-size"):
        ServerOptions(faults=(Fault(name="slow_replica"),))


def test_a_measured_cost_takes_the_place_of_the_profiles(tmp_path: Path) -> None:
    path = tmp_path / "cost.yaml"
    cost = ServerCost(step=QUICK, front_end=FrontEndCost(request_s=0.05))
    write_cost(
        path, MeasuredCost(model="m", engine="vllm", version=None, measured_at="2026-11-21", cost=cost)
    )
    profile = profile_of(parser_of(None).parse_args(["--calibration", str(path)]))
    assert (profile.step_cost, profile.front_end) == (QUICK, cost.front_end)


def test_a_request_waits_as_long_as_the_front_end_takes() -> None:
    async def story(client: aiohttp.ClientSession, server: TwinServer) -> None:
        start_s = asyncio.get_running_loop().time()
        await post(client, "/v1/completions", prompt=[1, 2, 3], max_tokens=1, ignore_eos=True)
        assert asyncio.get_running_loop().time() - start_s >= 0.2

    visit(story, replace(TINY, step_cost=QUICK, front_end=FrontEndCost(request_s=0.2)))
