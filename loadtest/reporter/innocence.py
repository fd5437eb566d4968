"""Which levels count: one at which the load generator broke a rule of its own proves nothing. Pure.

A late client makes a server look slower than it is, and loads it less than was asked. So a level that held
proves as little as one that broke.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from loadtest.reporter.observation import ClientHealth, StageObservation, Wall
from loadtest.search_result import SearchResult

PARKED_RATIO: Final = 0.10
WAY_MAX_S: Final = 0.300
"""No way to a server and back takes longer: what does is waiting, at however low a load."""


def counting(stages: Sequence[StageObservation]) -> list[StageObservation]:
    """Those at which the client was innocent."""
    return [stage for stage in stages if not stage.client.faults]


def client_wall(
    by_users: Sequence[StageObservation], n_max: int, broken: StageObservation | None
) -> Wall | None:
    """The client, where its own faults hide the limit. A void level below the limit hides nothing.

    `n_max` and `broken` are of the levels that count; `broken` may be void where none of those broke.
    """
    spoiled = [
        stage
        for stage in by_users
        if stage.client.faults and stage.users > n_max and (broken is None or stage.users <= broken.users)
    ]
    is_known = n_max > 0 and broken is not None and not broken.client.faults
    return _wall(spoiled[0], spoiled[0].client.faults, n_max) if spoiled and not is_known else None


def client_wall_of_search(stages: Sequence[StageObservation], found: SearchResult) -> Wall | None:
    """The same, where a level was void on which the result stands: limit, next above, signed one."""
    void = [stage for stage in stages if stage.client.faults and _stands_on(stage, found)]
    return _wall(void[0], void[0].client.faults, _highest_held(stages, found.n_max)) if void else None


def halted(stages: Sequence[StageObservation], n_max: int) -> Wall | None:
    """The client, where it stopped asking for a while: no signature is given on such a run."""
    halted = next((stage for stage in stages if stage.client.halts), None)
    return None if halted is None else _wall(halted, halted.client.halts, _highest_held(stages, n_max))


def _highest_held(stages: Sequence[StageObservation], n_max: int) -> int:
    """Users of the highest level up to the limit that held while the client was innocent; 0: none."""
    return max((stage.users for stage in counting(stages) if stage.held and stage.users <= n_max), default=0)


def _stands_on(stage: StageObservation, found: SearchResult) -> bool:
    if stage.index >= len(found.probes):
        return False  # the load ended before it was known
    probe = found.probes[stage.index]
    is_bracket = probe.choice.role == "search" and probe.users in (found.n_max, found.breaks)
    return is_bracket or probe.choice.role == "certify"


def with_client(wall: Wall, client: Wall | None) -> Wall:
    """The client comes first; what the server showed comes second."""
    if client is None:
        return wall
    return replace(client, runner_up=wall.runner_up if wall.name == "client" else _behind(wall))


def _behind(wall: Wall) -> Wall | None:
    return None if wall.name == "none" else replace(wall, runner_up=None)


def _wall(void: StageObservation, why: Sequence[str], counts: int) -> Wall:
    rest = f"{counts} users still count" if counts else "no level counts"
    return Wall(name="client", evidence=f"the load generator at {void.name}: {'; '.join(why)}; {rest}")


def parked_fault(client: ClientHealth, in_flight: float, requests_per_s: float) -> str:
    """Why a level is full in front of the engine, whatever its latency; empty where it is not.

    `in_flight`: requests, the mean. The share of them that the engine neither runs nor queues, in most looks,
    is by Little's law so long outside for each request: a long way there is no queue.
    """
    parked_ratio = client.parked_mostly_ratio
    if parked_ratio is None or parked_ratio <= PARKED_RATIO or not requests_per_s:
        return ""
    outside_s = parked_ratio * in_flight / requests_per_s
    if outside_s <= WAY_MAX_S:
        return ""
    return (
        f"{parked_ratio:.0%} of the requests in flight parked in front of the engine, {outside_s:.1f} s each"
    )
