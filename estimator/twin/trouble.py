"""What faults do beyond one answer: to the engines' clocks, to the counters, to memory, and to who asks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Final

from aiohttp import web

from estimator.spec import SpecError
from estimator.twin.faults import HEADER, Fault, FaultPlan
from estimator.twin.options import NO_REPLICA, ServerOptions
from estimator.twin.ranks import Rank
from estimator.twin.telemetry import Metrics
from estimator.units import MIB

SCALE_MIN: Final = 1e-6


class Trouble:
    """The faults of one server: which of them a request meets, and what they have done so far."""

    def __init__(self, options: ServerOptions, ranks: Sequence[Rank], metrics: Metrics) -> None:
        self.engine_dead = False
        self._time_scale = options.time_scale
        self._ranks = tuple(ranks)
        self._metrics = metrics
        self._plan = FaultPlan(faults=options.faults, test_mode=options.test_mode)
        self._leaked: list[bytes] = []
        self._started_s = time.time()

    def due(self, endpoint: str, request: web.Request) -> list[Fault]:
        """What meets a request of "generate" or "metrics" now. Raises SpecError."""
        since_start_s = time.time() - self._started_s
        return list(self._plan.due(endpoint, request.headers.get(HEADER), since_start_s))

    def strike(self, fault: Fault) -> None:
        """What it does to the whole server. Raises SpecError where there is no replica to slow down."""
        loops = [rank.loop for rank in self._ranks]
        if fault.name == "slow_replica":
            if len(loops) == 1:
                raise SpecError(NO_REPLICA)
            loops = loops[-1:]
        for loop in loops:
            if fault.name in ("engine_hung", "engine_dead"):
                loop.hung = True
            elif fault.name in ("slow_down", "slow_replica"):
                loop.time_scale = self._time_scale * max(fault.number, SCALE_MIN)
        if fault.name == "engine_dead":
            self.engine_dead = True
        elif fault.name == "counters_reset":
            self._metrics.reset()
        elif fault.where == "leak":
            self._leak(fault)

    def _leak(self, fault: Fault) -> None:
        if fault.name == "leak_memory":
            self._leaked.append(b"\1" * int(fault.number * MIB))
            return
        for rank in self._ranks:
            rank.engine.pool.allocate(min(int(fault.number), rank.engine.pool.free_blocks))


async def refuse_by(fault: Fault, request: web.Request) -> None:
    """A fault that comes instead of an answer."""
    if fault.name == "rate_limited":
        raise web.HTTPTooManyRequests(headers={"Retry-After": fault.text})
    if fault.name == "unavailable":
        raise web.HTTPServiceUnavailable(headers={"Retry-After": fault.text})
    if fault.name == "redirect":
        raise web.HTTPTemporaryRedirect(fault.text.rstrip("/") + request.path_qs)
    if fault.name == "half_open":
        await asyncio.Event().wait()
