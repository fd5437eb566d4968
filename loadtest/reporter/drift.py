"""Does a soak drift? Medians of blocks, a trend that is no chance, and a rise that would matter. Pure.

A quantity drifts when Mann and Kendall's test of its 10-minute medians, the 95% interval of its Theil-Sen
slope and a practical limit all say so. Minutes resemble their neighbours, blocks hardly do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Final, Literal

from loadtest.records import Sample
from loadtest.reporter.drift_quantities import IDLE, QUANTITIES, Quantity
from loadtest.reporter.drift_series import (
    IdlePoint,
    Load,
    Minutes,
    counter_minutes,
    idle_points,
    latency_minutes,
    load_of,
    restarts,
    signal_minutes,
    where_of,
    work_minutes,
)
from loadtest.reporter.drift_step import Step, steps_of
from loadtest.results import RunRows
from loadtest.sequential import Slope, mann_kendall, theil_sen

BLOCK_MINUTES: Final = 10
BLOCK_MINUTES_MIN: Final = 6
"""A block with fewer minutes than this is left out: its median is another thing."""
BLOCKS_MIN: Final = 18
"""Three hours. Below, the trend test sees little and the interval is wide."""
TREND_P_VALUE: Final = 0.035
"""Two-sided, and only a rise counts: 1.75%. Minutes that resemble their neighbours (AR(1), 0.8) make it 4%; a
stricter test, or longer blocks, would miss half of the drifts of two standard deviations."""
HORIZON_H: Final = 7 * 24.0
"""How far ahead a trend is drawn: a server should outlive a week."""

KV_FULL_RATIO: Final = 0.9
"""Where what is never given back has taken this much of the KV cache, no load fits any more."""

DriftStatus = Literal["steady", "drifts", "too short", "not seen"]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantityDrift:
    """One quantity of one server, device or worker. Hours count from the soak's start; None: not known.

    `start` is its level at the start and `rise_per_h` its slope, in its unit, as the trend has them;
    `rise_allowed` what may be added over the horizon (of a quantity that is worse lower: taken away),
    `full_in_h` when its capacity would be used up. `hourly` are medians by the hour, from 0.
    """

    quantity: Quantity
    where: str
    status: DriftStatus
    blocks: int = 0
    start: float | None = None
    rise_per_h: Slope | None = None
    p_value: float | None = None
    rise_projected: float | None = None
    rise_allowed: float | None = None
    capacity: float | None = None
    full_in_h: float | None = None
    hourly: Minutes = field(default_factory=dict)
    points: tuple[tuple[float, float], ...] = ()
    """What was judged: (hour, median of a block), or what a dip showed."""
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftReport:
    """The soak as a whole. `restarts` are (hours since its start, which server)."""

    status: DriftStatus
    hours: float
    horizon_h: float
    quantities: tuple[QuantityDrift, ...]
    restarts: tuple[tuple[float, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftPlan:
    """How far ahead to look, and what the rows do not say: `capacities` by a quantity's name, its unit."""

    horizon_h: float = HORIZON_H
    capacities: Mapping[str, float] = field(default_factory=dict)


def drift_of(rows: RunRows, plan: DriftPlan | None = None) -> DriftReport:
    """The verdict on every quantity of QUANTITIES and on the KV cache at idle points."""
    plan = plan or DriftPlan()
    load = load_of(rows.events)
    if load is None:
        unseen = tuple(_not_seen(quantity) for quantity in (*QUANTITIES, IDLE))
        return DriftReport(status="not seen", hours=0.0, horizon_h=plan.horizon_h, quantities=unseen)
    of_requests = {**latency_minutes(rows.requests, load), **work_minutes(rows.requests, load)}
    found: list[QuantityDrift] = []
    for quantity in QUANTITIES:
        series = _series(quantity, of_requests, rows.samples, load)
        found += [
            judge_minutes(quantity, where, minutes, _capacity(quantity, where, rows.samples, plan), plan)
            for where, minutes in series.items()
        ] or [_not_seen(quantity)]
    found += _at_idle(rows.samples, load)
    again = [((one.at_ns - load.start_ns) / 3.6e12, one.where) for one in restarts(rows.samples)]
    return DriftReport(
        status=_overall(found, has_restarted=bool(again)),
        hours=load.hours,
        horizon_h=plan.horizon_h,
        quantities=tuple(found),
        restarts=tuple(again),
    )


def _not_seen(quantity: Quantity) -> QuantityDrift:
    return QuantityDrift(quantity=quantity, where="", status="not seen")


def _overall(found: Sequence[QuantityDrift], *, has_restarted: bool) -> DriftStatus:
    seen = {one.status for one in found}
    if "drifts" in seen or has_restarted:
        return "drifts"
    order: tuple[DriftStatus, ...] = ("too short", "steady")
    trends = {one.status for one in found if one.quantity is not IDLE}
    return next((status for status in order if status in trends), "not seen")


def _series(
    quantity: Quantity, of_requests: Mapping[str, Minutes], samples: Sequence[Sample], load: Load
) -> dict[str, Minutes]:
    if quantity.source is None:
        return {"": of_requests[quantity.name]} if of_requests[quantity.name] else {}
    minutes_of = counter_minutes if quantity.is_counter else signal_minutes
    return minutes_of(samples, quantity.source, quantity.name, load)


def _capacity(quantity: Quantity, where: str, samples: Iterable[Sample], plan: DriftPlan) -> float | None:
    if quantity.capacity_signal is None or quantity.source is None:
        return plan.capacities.get(quantity.name)
    from_rows = (s for s in samples if s.source == quantity.source and quantity.capacity_signal in s.signals)
    return next((s.signals[quantity.capacity_signal] for s in from_rows if where_of(s) == where), None)


def blocks_of(minutes: Minutes) -> list[tuple[float, float]]:
    """(hour of its middle, median) of each block that was seen well enough."""
    by_block: dict[int, list[float]] = {}
    for minute, value in minutes.items():
        by_block.setdefault(minute // BLOCK_MINUTES, []).append(value)
    return [
        ((block + 0.5) * BLOCK_MINUTES / 60, median(values))
        for block, values in sorted(by_block.items())
        if len(values) >= BLOCK_MINUTES_MIN
    ]


def judge_minutes(
    quantity: Quantity, where: str, minutes: Minutes, capacity: float | None, plan: DriftPlan
) -> QuantityDrift:
    """The verdict on one series; `capacity` is in the quantity's unit."""
    blocks, hourly = blocks_of(minutes), by_hour(minutes)
    if len(blocks) < BLOCKS_MIN:
        return QuantityDrift(
            quantity=quantity,
            where=where,
            status="too short",
            blocks=len(blocks),
            hourly=hourly,
            points=tuple(blocks),
        )
    trend = theil_sen([hour for hour, _ in blocks], [value for _, value in blocks])
    p_value = mann_kendall([value for _, value in blocks]).p_value
    start, last_h = trend.at_zero, blocks[-1][0]
    allowed = _rise_allowed(quantity, abs(start), capacity, hours=plan.horizon_h)
    projected = trend.slope * plan.horizon_h
    room = math.inf if capacity is None else max(capacity - (start + trend.slope * last_h), 0.0)
    full_in_h = room / trend.slope if trend.slope > 0 and math.isfinite(room) else None
    worse = -projected if quantity.is_worse_lower else projected
    matters = worse > allowed or (full_in_h is not None and full_in_h <= plan.horizon_h)
    surely_worse = trend.high < 0 if quantity.is_worse_lower else trend.low > 0
    is_trend = p_value < TREND_P_VALUE and surely_worse
    step_min = _rise_allowed(quantity, abs(start), capacity, hours=1.0)
    steps = _steps(quantity, blocks, trend.slope, step_min)
    return QuantityDrift(
        quantity=quantity,
        where=where,
        status="drifts" if (is_trend and matters) or steps else "steady",
        blocks=len(blocks),
        start=start,
        rise_per_h=trend,
        p_value=p_value,
        rise_projected=projected,
        rise_allowed=allowed,
        capacity=capacity,
        full_in_h=full_in_h if is_trend else None,
        hourly=hourly,
        points=tuple(blocks),
        steps=steps,
    )


def by_hour(minutes: Minutes) -> dict[int, float]:
    """The median of each hour's minutes."""
    values: dict[int, list[float]] = {}
    for minute, value in minutes.items():
        values.setdefault(minute // 60, []).append(value)
    return {hour: median(found) for hour, found in sorted(values.items())}


def _steps(
    quantity: Quantity, blocks: Sequence[tuple[float, float]], slope: float, step_min: float
) -> tuple[Step, ...]:
    """What is worse lower is looked at upside down."""
    if not quantity.is_worse_lower:
        return steps_of(dict(blocks), slope=slope, step_min=step_min)
    mirrored = steps_of({hour: -value for hour, value in blocks}, slope=-slope, step_min=step_min)
    return tuple(Step(at_h=step.at_h, before=-step.before, after=-step.after) for step in mirrored)


def _rise_allowed(quantity: Quantity, start: float, capacity: float | None, *, hours: float) -> float:
    """What `hours` may add."""
    if quantity.rise_of_capacity_ratio is not None and capacity is not None:
        return quantity.rise_of_capacity_ratio * capacity
    if quantity.rise_of_start_ratio is not None:
        return quantity.rise_of_start_ratio * start
    if quantity.rise_per_h is not None:
        return quantity.rise_per_h * hours
    return quantity.rise or 0.0


def _at_idle(samples: Iterable[Sample], load: Load) -> list[QuantityDrift]:
    """What the KV cache holds while nothing runs must be nothing; each server's last idle spell tells."""
    by_server: dict[str, list[IdlePoint]] = {}
    for point in idle_points(samples, load.start_ns):
        by_server.setdefault(point.where, []).append(point)
    return [_idle_drift(where, points, load) for where, points in by_server.items()] or [_not_seen(IDLE)]


def _idle_drift(where: str, points: Sequence[IdlePoint], load: Load) -> QuantityDrift:
    hours = [(point.at_ns - load.start_ns) / 3.6e12 for point in points]
    kept = [point.kv_usage_ratio for point in points]
    trend = theil_sen(hours, kept) if len(points) > 1 else None
    grows = trend is not None and trend.slope > 0
    return QuantityDrift(
        quantity=IDLE,
        where=where,
        status="drifts" if kept[-1] > 0 else "steady",
        blocks=len(points),
        start=kept[0],
        rise_per_h=trend,
        p_value=mann_kendall(kept).p_value,
        rise_projected=kept[-1],
        rise_allowed=0.0,
        full_in_h=max(KV_FULL_RATIO - kept[-1], 0.0) / trend.slope if trend is not None and grows else None,
        points=tuple(zip(hours, kept, strict=True)),
        hourly=by_hour({int(hour * 60): value for hour, value in zip(hours, kept, strict=True)}),
    )
