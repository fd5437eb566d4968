"""Forecast -> readable text of 100 columns, or a dict for machines. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from operator import attrgetter
from typing import Any, Final

from estimator.capacity import Prediction
from estimator.spec import Interval
from estimator.twin.cost import ServerCost
from estimator.twin.forecast import Forecast, Row, Seen
from estimator.twin.goals import Goal
from loadtest.reporter.estimate_text import WIDTH, lengths_text, wrapped

LIMITS: Final = {"ttft_s": "TTFT", "tpot_s": "TPOT", "e2e_s": "E2E"}
LOAD: Final = (
    *(("users", 7), ("running", 9), ("waiting", 9), ("KV", 7), ("preempt/h", 11), ("tokens/s", 10)),
    ("requests/s", 12),
)
LATENCIES: Final[tuple[tuple[str, str, int, Callable[[Seen], float]], ...]] = (
    ("TTFT s", "p50", 12, lambda seen: seen.ttft_p50_s),
    ("", "p95", 12, lambda seen: seen.ttft_p95_s),
    ("TPOT ms", "p50", 10, lambda seen: seen.tpot_p50_s * 1000),
    ("", "p95", 10, lambda seen: seen.tpot_p95_s * 1000),
)
"""Titles, the width of the range, and what is shown."""
LIKELY_WIDTH: Final = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class ForecastPage:
    """All that a page of `ullage predict` says. Ranges are those of the estimate's ledger."""

    scenario: str
    server: str
    """Which server, in words: the model on its GPUs, or the name of a twin."""
    prediction: Prediction
    n_guaranteed: Interval
    n_sustained: Interval
    n_saturation: Interval
    cost: ServerCost
    goal: Goal
    forecast: Forecast
    seed: int
    cautions: tuple[str, ...] = ()


def forecast_text(page: ForecastPage) -> str:
    """For a person: what fits by arithmetic, what the virtual clock saw, and how sure that is."""
    parts = (_title(page), _counts(page), _load(page), _latencies(page), _notes(page))
    return "\n\n".join("\n".join(part) for part in parts)


def forecast_dict(page: ForecastPage) -> dict[str, Any]:
    """For machines: requests, seconds, shares and counts a second or an hour, as the names say.

    A figure that depends on the cost of a step is {low, likely, high} over that cost's range.
    """
    cast = page.forecast
    return {
        "scenario": page.scenario,
        "server": page.server,
        "workload": asdict(page.prediction.workload),
        "seed": page.seed,
        "cost": asdict(page.cost),
        "n_guaranteed": asdict(page.n_guaranteed),
        "n_sustained": asdict(page.n_sustained),
        "n_saturation": asdict(page.n_saturation),
        "n_slots": page.prediction.n_slots,
        "saturation_observed": cast.plateau,
        "full_at": cast.full_at,
        "full_by": cast.full_by,
        "goal": asdict(page.goal),
        "n_slo": None if not page.goal.limits_s else asdict(cast.n_slo_range),
        "levels": [_row_dict(row) for row in cast.rows],
        "cautions": list(page.cautions),
    }


def _row_dict(row: Row) -> dict[str, Any]:
    names = [name for name in Seen.__dataclass_fields__ if name not in ("broken", "requests")]
    measured = {name: asdict(row.interval(attrgetter(name))) for name in names}
    return {
        "users": row.users,
        **measured,
        "requests": row.likely.requests,
        "broken": list(row.likely.broken),
    }


def _title(page: ForecastPage) -> list[str]:
    workload, cost = page.prediction.workload, page.cost
    shape = (
        f"{lengths_text(workload.input_tokens)} input + {lengths_text(workload.output_tokens)} output tokens"
    )
    spread = "no range given"
    if cost.low_factor != cost.high_factor:
        spread = f"a step may take {cost.low_factor:.3g} to {cost.high_factor:.3g} times that"
    return [
        *wrapped("", f"{page.server} | {page.scenario}: {shape}"),
        *wrapped("Cost of a step: ", f"{cost.source}; {spread}"),
    ]


def _counts(page: ForecastPage) -> list[str]:
    rows = [
        ("N_guaranteed", page.n_guaranteed, _count, "by arithmetic: no preemption can occur"),
        ("N_sustained", page.n_sustained, _count, "by arithmetic: 1% chance of a preemption an hour"),
        ("N_saturation", page.n_saturation, _tenths, _observed(page)),
    ]
    if page.prediction.n_slots is not None:
        rows.append(("N_slots", Interval.exact(page.prediction.n_slots), _count, "max_num_seqs"))
    if page.goal.limits_s:
        rows.append(("N_slo", page.forecast.n_slo_range, _count, _slo(page)))
    spreads = [_spread(interval, show) for _, interval, show, _ in rows]
    width = max(len(spread) for spread in spreads)
    lines = ["Requests at once"]
    for (name, interval, show, text), spread in zip(rows, spreads, strict=True):
        lines += wrapped(f"  {name:<12}{show(interval.likely):>9}  {spread:<{width}}  ", text)
    return lines


def _observed(page: ForecastPage) -> str:
    cast = page.forecast
    users = f"{cast.rows[-1].users:,} users"
    if cast.plateau is None:
        return f"by arithmetic; the virtual clock saw no queue up to {users}"
    away = cast.plateau / cast.full_at - 1
    of = "" if cast.full_by == "kv" else f" of {cast.full_at:,.0f} slots"
    return f"by arithmetic; the virtual clock: {cast.plateau:,.1f} running{of} at {users} ({away:+.1%})"


def _slo(page: ForecastPage) -> str:
    goal = page.goal
    limits = ", ".join(f"{LIMITS[name]} {limit:g} s" for name, limit in goal.limits_s.items())
    wanted = f"{goal.percentile:g}% within {limits}"
    broken = page.forecast.first_broken
    if broken is None:
        return f"{wanted}: kept at every level tried"
    return f"{wanted}: {broken.users:,} users break {_named(broken)}; levels between were not tried"


def _load(page: ForecastPage) -> list[str]:
    lines = ["Load, by the virtual clock", "".join(f"{name:>{width}}" for name, width in LOAD)]
    for row in page.forecast.rows:
        seen = row.likely
        cells = (
            f"{row.users:,}",
            f"{seen.running:,.1f}",
            f"{seen.waiting:,.1f}",
            f"{seen.kv_usage:.1%}",
            f"{seen.preemptions_per_hour:,.0f}",
            f"{seen.output_tokens_per_s:,.0f}",
            f"{seen.requests_per_s:,.2f}",
        )
        pairs = zip(cells, LOAD, strict=True)
        lines.append("".join(f"{cell:>{width}}" for cell, (_, width) in pairs) + _meaning(page, row))
    return lines


def _meaning(page: ForecastPage, row: Row) -> str:
    known = (
        ("N_guaranteed", page.prediction.n_guaranteed),
        ("N_sustained", page.prediction.n_sustained),
        ("full", round(page.forecast.full_at)),
    )
    names = [name for name, users in known if users == row.users]
    return f"  {', '.join(names)}" if names else ""


def _latencies(page: ForecastPage) -> list[str]:
    is_exact = page.cost.low_factor == page.cost.high_factor
    columns = [(title, name, 0 if is_exact else width, of) for title, name, width, of in LATENCIES]
    range_title = "" if is_exact else " range"
    titles = "".join(f"{title:>{LIKELY_WIDTH}}{'':{width}}" for title, _, width, _ in columns)
    head = "".join(f"{name:>{LIKELY_WIDTH}}{range_title:<{width}}" for _, name, width, _ in columns)
    lines = [
        "Latency, as likely" + ("" if is_exact else " and over the cost's range"),
        f"{'':7}{titles}".rstrip(),
        f"{'users':>7}{head}{'  in limits' if page.goal.limits_s else ''}".rstrip(),
    ]
    for row in page.forecast.rows:
        cells = "".join(_cell(row.interval(quantity), width) for _, _, width, quantity in columns)
        judged = _judged(row, page.forecast.first_broken) if page.goal.limits_s else ""
        lines.append(f"{row.users:>7,}{cells}{judged}".rstrip())
    return lines


def _judged(row: Row, first_broken: Row | None) -> str:
    broken = f" {_named(row)}" if row.likely.broken else ""
    return f"{row.likely.within_ratio:>8.1%}{broken}{' <' if row is first_broken else ''}"


def _cell(interval: Interval, width: int) -> str:
    spread = "" if interval.is_exact else f" {_three(interval.low)}-{_three(interval.high)}"
    return f"{_three(interval.likely):>{LIKELY_WIDTH}}{spread:<{width}}"


def _notes(page: ForecastPage) -> list[str]:
    rows = page.forecast.rows
    requests = [row.likely.requests for row in rows]
    spans = [row.likely.simulated_s for row in rows]
    notes = wrapped(
        "Simulated: ",
        f"closed loops of users who do not pause, {_ends(requests, _count)} requests a level over "
        f"{_ends(spans, _count)} s of the server's time after the warm-up; seed {page.seed}. Before any load "
        "test, and without the buffer.",
    )
    for caution in page.cautions:
        # a path in a caution stays whole, so that it can be copied
        notes += textwrap.wrap(
            caution.rstrip(".") + ".",
            WIDTH,
            initial_indent="Caution: ",
            subsequent_indent=" " * 9,
            break_on_hyphens=False,
            break_long_words=False,
        )
    return notes


def _ends(values: Sequence[float], show: Callable[[float], str]) -> str:
    low, high = show(min(values)), show(max(values))
    return low if low == high else f"{low} to {high}"


def _named(row: Row) -> str:
    names = [LIMITS[name] for name in row.likely.broken]
    return "all" if len(names) == len(LIMITS) else "+".join(names)


def _spread(interval: Interval, show: Callable[[float], str]) -> str:
    return "" if interval.is_exact else f"{show(interval.low)} to {show(interval.high)}"


def _count(number: float) -> str:
    return f"{number:,.0f}"


def _tenths(number: float) -> str:
    return f"{number:,.1f}"


def _three(number: float) -> str:
    """Three digits that matter, and no more than three after the point."""
    for least, digits in ((100, 0), (10, 1), (1, 2)):
        if number >= least:
            return f"{number:,.{digits}f}"
    return f"{number:.3f}"
