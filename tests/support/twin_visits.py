"""A twin on a loopback port for the length of a story, and a client that visits it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import aiohttp
from aiohttp import web

from estimator.twin.cost import StepCost
from estimator.twin.options import ServerOptions
from estimator.twin.profile import TwinProfile, read_profile
from estimator.twin.server import TwinServer, runner_of

QUICK = StepCost(
    fixed_s=0.001, compute_s_per_token=1e-6, weights_s=0.001, context_s_per_token=0, sequence_s=0
)
TINY = replace(read_profile("tiny"), step_cost=QUICK)
Visit = Callable[[aiohttp.ClientSession, TwinServer], Awaitable[None]]


@contextlib.asynccontextmanager
async def listening(server: TwinServer) -> AsyncIterator[int]:
    """Its port."""
    runner = runner_of(server)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def running(server: TwinServer) -> AsyncIterator[aiohttp.ClientSession]:
    async with listening(server) as port, aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client:
        yield client


def visit(story: Visit, profile: TwinProfile = TINY, **options: Any) -> None:
    async def tell() -> None:
        server = TwinServer(profile, ServerOptions(**options))
        async with running(server) as client:
            await story(client, server)

    asyncio.run(asyncio.wait_for(tell(), 20))


async def post(client: aiohttp.ClientSession, path: str, **body: Any) -> Any:
    async with client.post(path, json=body) as response:
        assert response.status == 200
        return await response.json()
