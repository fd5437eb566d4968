"""A finished run and a change of its server: what the twin, calibrated by it, foretells of both. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Final

from estimator.spec import Interval
from estimator.twin.cost import ServerCost
from estimator.twin.forecast import Forecast, Row, forecast
from estimator.twin.goals import Goal
from estimator.twin.prior import RANGE
from estimator.twin.validated import MEASURED, Quantity, seen_over_foretold
from loadtest.reporter.buffer import safe_limit
from loadtest.reporter.run_cost import Replayed, Server

QUANTITIES: Final = tuple(MEASURED)
REFINED_TIMES: Final = 3
"""Levels between the last that keeps the limits and the first that does not, halved as ratios."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Foretold:
    """What the twin makes of a server. n_slo None: no limit is set, or all levels keep it."""

    server: Server
    cast: Forecast
    n_slo: Interval | None
    n_safe: Interval
    at: Row
    """At N_safe users, or at those that a person asked for."""
    off: Mapping[Quantity, Interval]
    """What may be seen for 1 that is foretold."""

    @property
    def walls(self) -> tuple[tuple[str, float], ...]:
        """(name, users) of every limit that is known, the nearest first."""
        prediction = self.server.prediction
        known = {"kv": prediction.n_kv, "slots": prediction.n_slots}
        slo = None if self.n_slo is None else self.n_slo.likely
        found = [(name, float(users)) for name, users in known.items() if users is not None]
        found += [] if slo is None else [("slo", slo)]
        return tuple(sorted(found, key=lambda wall: wall[1]))

    def figure(self, quantity: Quantity) -> Interval:
        """With its error bar: the cost's range, and what the twin was off where it was looked at."""
        row, off = self.at.interval(attrgetter(quantity)), self.off[quantity]
        return Interval(
            low=min(row.low, row.likely * off.low),
            likely=row.likely,
            high=max(row.high, row.likely * off.high),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WhatIfPage:
    """All that `ullage whatif` says."""

    run_id: str
    change: tuple[str, ...]
    """Each flag that differs, as "tp 1 -> 2"."""
    replayed: tuple[Replayed, ...]
    before: Foretold
    after: Foretold
    is_carried: bool
    """The cost was scaled to other hardware by data sheets: its range is as wide as theirs."""
    goal: Goal
    unknown: tuple[str, ...]


def as_sure_as_measured(cost: ServerCost) -> ServerCost:
    """The range of a calibrated cost, never closer than what the twin's steps were off beside a real vLLM."""
    off = seen_over_foretold("tpot_p50_s")
    return replace(
        cost,
        low_factor=min(cost.low_factor, off.low),
        high_factor=max(cost.high_factor, off.high),
        range_of_all=True,
    )


def as_sure_as_data_sheets(cost: ServerCost) -> ServerCost:
    """The range of a cost that data sheets carried to other hardware: nothing measured says it is closer."""
    return replace(
        cost,
        low_factor=min(cost.low_factor, RANGE[0]),
        high_factor=max(cost.high_factor, RANGE[1]),
        range_of_all=True,
    )


def off_by(replayed: Sequence[Replayed]) -> dict[Quantity, Interval]:
    """What may be seen for 1 that is foretold: in the validation against a real vLLM, and in this run."""
    found = {}
    for quantity in QUANTITIES:
        ratios, known = [one.ratio(quantity) for one in replayed], seen_over_foretold(quantity)
        found[quantity] = Interval(low=min(known.low, *ratios), likely=1.0, high=max(known.high, *ratios))
    return found


def foretell(
    server: Server,
    goal: Goal,
    off: Mapping[Quantity, Interval],
    *,
    seed: int,
    users: int | None = None,
) -> Foretold:
    """Raises SpecError when a request could never fit."""

    def at_levels(levels: Sequence[int] | None) -> Forecast:
        return forecast(server.limits, server.cost, server.prediction, goal, seed=seed, levels=levels)

    cast = _refined(at_levels(None), at_levels)
    n_slo = cast.n_slo_range if goal.limits_s and cast.first_broken is not None else None
    n_safe = _n_safe(server, n_slo)
    asked = users or max(1, int(n_safe.likely))
    known = {row.users: row for row in cast.rows}
    at = known.get(asked) or at_levels((asked,)).rows[0]
    return Foretold(server=server, cast=cast, n_slo=n_slo, n_safe=n_safe, at=at, off=off)


def _refined(cast: Forecast, at_levels: Callable[[Sequence[int]], Forecast]) -> Forecast:
    """With levels between those where the limits begin to break, so that N_slo is no coarse step."""
    for _ in range(REFINED_TIMES):
        broken, kept = cast.first_broken, cast.n_slo()
        between = 0 if broken is None else round((max(kept, 1) * broken.users) ** 0.5)
        if broken is None or not kept < between < broken.users:
            return cast
        rows = (*cast.rows, *at_levels((between,)).rows)
        cast = replace(cast, rows=tuple(sorted(rows, key=attrgetter("users"))))
    return cast


def _n_safe(server: Server, n_slo: Interval | None) -> Interval:
    slots = server.prediction.n_slots
    slo = (None, None, None) if n_slo is None else (n_slo.low, n_slo.likely, n_slo.high)
    kv = server.n_guaranteed
    ends = [
        safe_limit(limit, slots, most)
        for limit, most in zip((kv.low, server.prediction.n_kv, kv.high), slo, strict=True)
    ]
    return Interval(low=min(ends), likely=ends[1], high=max(ends))
