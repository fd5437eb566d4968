"""A finished run -> what a step of its server costs: a cost known in shape, fitted to what was seen. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from estimator.capacity import Prediction
from estimator.spec import Interval
from estimator.twin.cost import ServerCost, scaled
from estimator.twin.forecast import Row, forecast
from estimator.twin.goals import Goal
from estimator.twin.scales import fit_to_levels
from estimator.twin.scheduler import SchedulerLimits
from estimator.twin.validated import MEASURED, Quantity
from loadtest.reporter.observation import StageObservation
from loadtest.reporter.run_levels import level_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """One server, before or after the change. Ranges are those of the memory ledger."""

    words: str
    prediction: Prediction
    n_guaranteed: Interval
    limits: SchedulerLimits
    cost: ServerCost


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """One stage of the run, as it was and as the calibrated twin foretells it."""

    users: int
    foretold: Mapping[Quantity, float]
    seen: Mapping[Quantity, float]

    def ratio(self, quantity: Quantity) -> float:
        """What was seen for 1 that is foretold."""
        return self.seen[quantity] / self.foretold[quantity]


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated:
    """The cost, and the stages it was fitted to as the twin plays them with it."""

    cost: ServerCost
    replayed: tuple[Replayed, ...]


def calibrated(server: Server, stages: Sequence[StageObservation], seed: int, source: str) -> Calibrated:
    """Fits the server's cost to its stages by their mean steps, and once more by what the twin makes of them.

    stages: those of run_levels.telling. Raises SpecError when there is none.
    """
    levels = [level_of(stage, server.prediction.workload) for stage in stages]
    cost = fit_to_levels(server.cost, levels, source)
    cost = _corrected(cost, replay(replace(server, cost=cost), stages, seed))
    played = replay(replace(server, cost=cost), stages, seed)
    slower = [one.ratio("tpot_p50_s") for one in played]
    cost = replace(cost, low_factor=min(1.0, *slower), high_factor=max(1.0, *slower))
    return Calibrated(cost=cost, replayed=played)


def replay(server: Server, stages: Sequence[StageObservation], seed: int) -> tuple[Replayed, ...]:
    """The calibrating stages once more, in the twin."""
    cost = replace(server.cost, range_of_all=True)  # only the likely history is looked at
    by_users = {stage.users: stage for stage in stages}
    cast = forecast(server.limits, cost, server.prediction, Goal(), seed=seed, levels=tuple(sorted(by_users)))
    return tuple(_replayed(row, by_users[row.users]) for row in cast.rows)


def _corrected(cost: ServerCost, played: Sequence[Replayed]) -> ServerCost:
    """All steps by one factor, and the front end by what first tokens still lack."""
    slower = median(one.ratio("tpot_p50_s") for one in played)
    lacks_s = median(one.seen["ttft_p50_s"] - slower * one.foretold["ttft_p50_s"] for one in played)
    request_s = max(0.0, cost.front_end.request_s + lacks_s)
    front_end = replace(
        cost.front_end, request_s=request_s, request_cpu_s=min(cost.front_end.request_cpu_s, request_s)
    )
    return replace(cost, step=scaled(cost.step, slower), front_end=front_end)


def _replayed(row: Row, stage: StageObservation) -> Replayed:
    assert stage.ttft is not None
    assert stage.tpot is not None
    return Replayed(
        users=row.users,
        foretold={quantity: getattr(row.likely, quantity) for quantity in MEASURED},
        seen={
            "output_tokens_per_s": stage.output_tokens_per_s,
            "ttft_p50_s": stage.ttft.p50_s,
            "ttft_p95_s": stage.ttft.p95_s,
            "tpot_p50_s": stage.tpot.p50_s,
        },
    )
