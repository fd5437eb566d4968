"""A soak: one load for hours, with dips in which nothing is asked: they show what a server kept. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

from loadtest.scenario.parts import Stage, require, require_positive
from loadtest.scenario.whole import Scenario

DIP_EVERY_S: Final = 3600.0
DIP_S: Final = 60.0
DIPS_MIN: Final = 2
"""One dip shows what is kept, two whether it grows."""
DIP_RATIO_MAX: Final = 0.2
"""Of a short soak no more is spent without load, unless a person says so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SoakAsked:
    """`users` for `hours`, a dip of `dip_s` at the end of every `every_s`.

    None: an hour and a minute, or what a short soak has room for.
    """

    users: int
    hours: float
    every_s: float | None = None
    dip_s: float | None = None

    def __post_init__(self) -> None:
        require_positive("soak: ", self, "users", "hours", "every_s", "dip_s")


def soaking(scenario: Scenario, asked: SoakAsked) -> Scenario:
    """The same requests as one long load with dips. Raises ScenarioError where they cannot be one."""
    require(
        scenario.arrivals.kind == "closed",
        f"a soak holds a number of users, which arrivals of kind {scenario.arrivals.kind} do not follow: "
        "leave arrivals out",
    )
    total_s = asked.hours * 3600
    every_s = asked.every_s or min(DIP_EVERY_S, total_s / DIPS_MIN)
    dip_s = asked.dip_s or min(DIP_S, DIP_RATIO_MAX * every_s)
    spells = max(1, math.floor(total_s / every_s + 1e-9))
    hold_s = total_s / spells - dip_s
    ramp_s = asked.users / scenario.spawn_rate_per_s
    require(
        hold_s > scenario.settle_s + ramp_s,
        f"between dips of {dip_s:g} s there are {max(hold_s, 0):.3g} s of load, and {asked.users} users take "
        f"{ramp_s + scenario.settle_s:.3g} s to begin and settle: soak longer, or with fewer dips",
    )
    stages = (Stage(users=asked.users, hold_s=hold_s), Stage(users=0, hold_s=dip_s))
    return replace(scenario, stages=stages * spells, search=None)
