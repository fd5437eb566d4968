"""A finished run and a change of its server: what the twin, calibrated by the run, foretells of both. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Final

from estimator.capacity import Prediction
from estimator.spec import Interval
from estimator.twin.cost import ServerCost
from estimator.twin.forecast import Forecast, Goal, Row, Seen, forecast
from estimator.twin.prior import RANGE
from estimator.twin.scheduler import SchedulerLimits
from estimator.twin.validated import MEASURED, Quantity, seen_over_foretold
from loadtest.reporter.buffer import safe_limit
from loadtest.reporter.observation import StageObservation

REFINED_TIMES: Final = 3
"""Levels between the last that keeps the limits and the first that does not, halved as ratios."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """One server, before or after the change. Ranges are those of the memory ledger."""

    words: str
    prediction: Prediction
    n_guaranteed: Interval
    limits: SchedulerLimits
    cost: ServerCost


@dataclass(frozen=True, slots=True, kw_only=True)
class Foretold:
    """What the twin makes of a server. n_slo None: no limit is set, or all levels keep it."""

    server: Server
    cast: Forecast
    n_slo: Interval | None
    n_safe: Interval
    at: Row
    """At N_safe users, or at those that a person asked for."""

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
        """With its error bar: the cost's range, and what the twin was off beside a real server."""
        row, off = self.at.interval(attrgetter(quantity)), seen_over_foretold(quantity)
        return Interval(
            low=min(row.low, row.likely * off.low), likely=row.likely, high=max(row.high, row.likely * off.high)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """One stage of the run, as it was and as the calibrated twin foretells it."""

    users: int
    foretold: Seen
    tokens_per_s: float
    ttft_p50_s: float
    tpot_p50_s: float

    @property
    def errors(self) -> tuple[float, float]:
        """Of tokens a second and of TPOT: 0.1 is foretold a tenth too high."""
        return (
            self.foretold.output_tokens_per_s / self.tokens_per_s - 1.0,
            self.foretold.tpot_p50_s / self.tpot_p50_s - 1.0,
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
        cost, low_factor=min(cost.low_factor, off.low), high_factor=max(cost.high_factor, off.high)
    )


def as_sure_as_data_sheets(cost: ServerCost) -> ServerCost:
    """The range of a cost that data sheets carried to other hardware: nothing measured says it is closer."""
    return replace(
        cost, low_factor=min(cost.low_factor, RANGE[0]), high_factor=max(cost.high_factor, RANGE[1])
    )


def replay(server: Server, stages: Sequence[StageObservation], seed: int) -> tuple[Replayed, ...]:
    """The calibrating stages once more, in the twin."""
    by_users = {stage.users: stage for stage in stages}
    cast = forecast(
        server.limits, server.cost, server.prediction, Goal(), seed=seed, levels=tuple(sorted(by_users))
    )
    return tuple(_replayed(row, by_users[row.users]) for row in cast.rows)


def foretell(server: Server, goal: Goal, *, seed: int, users: int | None = None) -> Foretold:
    """Raises SpecError when a request could never fit."""

    def at_levels(levels: Sequence[int] | None) -> Forecast:
        return forecast(server.limits, server.cost, server.prediction, goal, seed=seed, levels=levels)

    cast = _refined(at_levels(None), at_levels)
    n_slo = cast.n_slo_range if goal.limits_s and cast.first_broken is not None else None
    n_safe = _n_safe(server, n_slo)
    asked = users or max(1, int(n_safe.likely))
    known = {row.users: row for row in cast.rows}
    at = known.get(asked) or at_levels((asked,)).rows[0]
    return Foretold(server=server, cast=cast, n_slo=n_slo, n_safe=n_safe, at=at)


def _replayed(row: Row, stage: StageObservation) -> Replayed:
    assert stage.ttft is not None
    assert stage.tpot is not None
    return Replayed(
        users=row.users,
        foretold=row.likely,
        tokens_per_s=stage.output_tokens_per_s,
        ttft_p50_s=stage.ttft.p50_s,
        tpot_p50_s=stage.tpot.p50_s,
    )


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


QUANTITIES: Final = tuple(MEASURED)
