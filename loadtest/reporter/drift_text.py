"""DriftReport -> sentences a person reads after a soak, or a dict for machines. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

from estimator.units import MIB
from loadtest.reporter.drift import (
    BLOCK_MINUTES,
    BLOCKS_MIN,
    KV_FULL_RATIO,
    DriftReport,
    DriftStatus,
    QuantityDrift,
)
from loadtest.reporter.drift_quantities import IDLE
from loadtest.reporter.plain import one_line

NONE: Final = "\N{EN DASH}"
HOURS_SHOWN: Final = 6
INTERVAL_POINTS_MIN: Final = 6
"""Fewer points leave an interval of their slope that says nothing."""
HEADLINES: Final[dict[DriftStatus, str]] = {
    "steady": "STEADY: nothing drifts",
    "drifts": "DRIFTS",
    "too short": "TOO SHORT TO TELL: a trend needs three hours at full load",
    "not seen": "NOT SEEN: nothing was measured at full load",
}


def drift_lines(report: DriftReport) -> list[str]:
    """A headline, then a line for each quantity, what drifts first; then the restarts."""
    order: tuple[DriftStatus, ...] = ("drifts", "steady", "too short", "not seen")
    ranked = sorted(report.quantities, key=lambda one: order.index(one.status))
    lines = [f"{HEADLINES[report.status]} ({in_words(report.hours)} at full load)"]
    lines += [f"  {sentence(one, report.horizon_h)}" for one in ranked]
    lines += [f"  {where}: the server restarted after {in_words(at_h)}" for at_h, where in report.restarts]
    return [one_line(line) for line in lines]


def drift_dict(report: DriftReport) -> dict[str, Any]:
    """Everything, in the units the names and each quantity's `unit` say."""
    return asdict(report)


def sentence(drift: QuantityDrift, horizon_h: float) -> str:
    """One quantity, with what it would be at the horizon where it drifts."""
    name = f"{drift.quantity.title} ({drift.where})" if drift.where else drift.quantity.title
    if drift.quantity is IDLE and drift.status != "not seen":
        return f"{name}: {_idle(drift)}"
    trend = drift.rise_per_h
    if trend is None or drift.start is None or drift.rise_projected is None:
        blocks = f", {drift.blocks} blocks of ten minutes" if drift.blocks else ""
        return f"{name}: {drift.status}{blocks}"
    unit = drift.quantity.unit
    text = f"{name}: {drift.status} at {amount(drift.start, unit)}, {_rise(trend.slope, unit)} an hour"
    if drift.status == "drifts":
        text += f" (95% interval {_rise(trend.low, unit)} to {_rise(trend.high, unit)})"
        if drift.rise_allowed is not None and abs(drift.rise_projected) > drift.rise_allowed:
            text += (
                f"; {_rise(drift.rise_projected, unit)} in {in_words(horizon_h)}, "
                f"{amount(drift.rise_allowed, unit)} allowed"
            )
    if drift.full_in_h is not None and drift.full_in_h <= horizon_h:
        text += f"; full in {in_words(drift.full_in_h)}"
    for step in drift.steps:
        text += (
            f"; stepped from {amount(step.before, unit)} to {amount(step.after, unit)} at hour {step.at_h}"
        )
    return text


def _idle(drift: QuantityDrift) -> str:
    kept = drift.rise_projected or 0.0
    spells = f"{drift.blocks} idle {'spell' if drift.blocks == 1 else 'spells'}"
    if drift.status == "steady":
        return f"steady, empty after {spells}"
    full = "" if drift.full_in_h is None else f"; {KV_FULL_RATIO:.0%} in {in_words(drift.full_in_h)}"
    return f"drifts: {kept:.2%} of the blocks stay in use while nothing runs, the last of {spells}{full}"


COLUMNS: Final = ("quantity", "verdict", "by the hour", "an hour more", "95% interval", "p", "so it")


def table(report: DriftReport) -> list[tuple[str, ...]]:
    """The cells of COLUMNS for each quantity that was seen; its place only where there are several."""
    seen = [drift for drift in report.quantities if drift.status != "not seen"]
    places = Counter(drift.quantity.name for drift in seen)
    return [
        tuple(
            one_line(cell) for cell in _cells(drift, report.horizon_h, named=places[drift.quantity.name] > 1)
        )
        for drift in seen
    ]


def unseen(report: DriftReport) -> list[str]:
    """Titles of what nobody showed."""
    return [drift.quantity.title for drift in report.quantities if drift.status == "not seen"]


def hours_missing(report: DriftReport) -> float:
    """How much longer the load would have to be held for a trend."""
    return max(BLOCKS_MIN * BLOCK_MINUTES / 60 - report.hours, 0.0)


def _cells(drift: QuantityDrift, horizon_h: float, *, named: bool) -> tuple[str, ...]:
    unit, trend = drift.quantity.unit, drift.rise_per_h
    name = f"{drift.quantity.title} ({drift.where})" if named else drift.quantity.title
    slope = interval = p_value = NONE
    if trend is not None:
        slope = _rise(trend.slope, unit)
        if drift.blocks >= INTERVAL_POINTS_MIN:
            interval = f"{_number(_rise(trend.low, unit))} to {_rise(trend.high, unit)}"
        if drift.p_value is not None:
            p_value = f"{drift.p_value:.2g}"
    hours = _by_hour(drift.hourly, unit)
    return name, drift.status, hours, slope, interval, p_value, _projection(drift, horizon_h)


def _by_hour(hourly: Mapping[int, float], unit: str) -> str:
    """At most HOURS_SHOWN of them, the first and the last among them."""
    hours = list(hourly)
    step = max(1, math.ceil((len(hours) - 1) / (HOURS_SHOWN - 1)))
    shown = sorted({*hours[::step], *hours[-1:]})
    texts = [amount(hourly[hour], unit) for hour in shown]
    return " \N{MIDDLE DOT} ".join([*map(_number, texts[:-1]), *texts[-1:]])


def _number(text: str) -> str:
    """Without its unit, which stands behind the next one."""
    return text.partition(" ")[0]


def _projection(drift: QuantityDrift, horizon_h: float) -> str:
    unit, parts = drift.quantity.unit, []
    if drift.full_in_h is not None:
        level = f"{KV_FULL_RATIO:.0%}" if drift.quantity is IDLE else "its capacity"
        parts.append(f"reaches {level} in {in_words(drift.full_in_h)}")
    elif drift.quantity is not IDLE and drift.rise_projected is not None:
        parts.append(f"is {_rise(drift.rise_projected, unit)} in {in_words(horizon_h)}")
    parts += [
        f"stepped from {amount(step.before, unit)} to {amount(step.after, unit)} at hour {step.at_h}"
        for step in drift.steps
    ]
    return "; ".join(parts) or NONE


def amount(value: float, unit: str) -> str:
    """With its unit, in the size a person reads."""
    match unit:
        case "s":
            return f"{value * 1000:,.1f} ms"
        case "bytes":
            return f"{value / MIB:,.0f} MiB"
        case "ratio":
            return f"{value:.2%}"
        case "tokens/s" | "/min":
            return f"{value:,.1f} {unit}"
    return f"{value:,.1f}"


def _rise(value: float, unit: str) -> str:
    sign = "-" if value < 0 else "+"
    return f"{sign}{amount(abs(value), unit)}"


def in_words(hours: float) -> str:
    """As long as a person says it."""
    if hours >= 48:
        return f"{hours / 24:.1f} days"
    return f"{hours:.1f} hours" if hours >= 1 else f"{hours * 60:.3g} minutes"
