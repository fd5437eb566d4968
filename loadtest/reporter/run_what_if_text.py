"""WhatIfPage -> five lines and two tables of 100 columns, or a dict for machines. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Final

from estimator.spec import Interval
from estimator.twin.validated import SOURCE, Quantity, seen_over_foretold
from loadtest.reporter.estimate_text import wrapped
from loadtest.reporter.forecast_text import LIMITS
from loadtest.reporter.run_cost import Replayed
from loadtest.reporter.run_what_if import QUANTITIES, Foretold, WhatIfPage

LABEL_WIDTH: Final = 12
NAME_WIDTH: Final = 16
SIDE_WIDTH: Final = 40
WALLS: Final = {
    "kv": "the KV cache (kv)",
    "slots": "the slots (max_num_seqs)",
    "slo": "the limits of the scenario (slo)",
}
SHOWN: Final[tuple[tuple[Quantity, str, float], ...]] = (
    ("output_tokens_per_s", "tokens/s", 1.0),
    ("ttft_p50_s", "TTFT p50 s", 1.0),
    ("ttft_p95_s", "TTFT p95 s", 1.0),
    ("tpot_p50_s", "TPOT p50 ms", 1000.0),
)
PLAYED: Final[tuple[tuple[Quantity, float, int], ...]] = (
    ("output_tokens_per_s", 1.0, 0),
    ("ttft_p50_s", 1000.0, 0),
    ("tpot_p50_s", 1000.0, 1),
)
"""Quantity, factor to the unit of the column, digits after the point."""
STEADY: Final[tuple[Quantity, ...]] = ("output_tokens_per_s", "tpot_p50_s")
"""What the twin is calibrated by; the times to a first token follow."""


def what_if_run_text(page: WhatIfPage) -> str:
    """For a person: what changes, what fits, how fast, what stops it, and what nobody knows."""
    lines = [
        line
        for label, text in (
            ("What if", _asked(page)),
            ("Fits", _fits(page)),
            ("Speed", _speed(page)),
            ("Wall", _wall(page.after)),
            ("Not known", "; ".join(page.unknown)),
        )
        for line in wrapped(f"{label:<{LABEL_WIDTH}}", text)
    ]
    return "\n".join([*lines, "", *_table(page), "", *_replay(page), "", *_bar(page)])


def what_if_run_dict(page: WhatIfPage) -> dict[str, Any]:
    """For machines: requests, tokens a second and seconds, as the names say; ranges low, likely, high."""
    return {
        "run_id": page.run_id,
        "change": list(page.change),
        "before": _side(page.before),
        "after": _side(page.after),
        "is_carried": page.is_carried,
        "replayed": [
            {"users": one.users, "foretold": dict(one.foretold), "seen": dict(one.seen)}
            for one in page.replayed
        ],
        "error_bar": {
            "source": SOURCE,
            **{quantity: asdict(seen_over_foretold(quantity)) for quantity in QUANTITIES},
        },
        "unknown": list(page.unknown),
    }


def _side(side: Foretold) -> dict[str, Any]:
    prediction = side.server.prediction
    return {
        "server": side.server.words,
        "num_blocks": prediction.pool.blocks,
        "n_kv": prediction.n_kv,
        "n_kv_range": asdict(side.server.n_guaranteed),
        "n_saturation": prediction.n_saturation,
        "n_slots": prediction.n_slots,
        "n_slo": None if side.n_slo is None else asdict(side.n_slo),
        "n_safe": asdict(side.n_safe),
        "wall": side.walls[0][0],
        "cost": asdict(side.server.cost),
        "at": {"users": side.at.users} | {quantity: asdict(side.figure(quantity)) for quantity in QUANTITIES},
    }


def _asked(page: WhatIfPage) -> str:
    change = ", ".join(page.change) or "nothing changes"
    worst = max(abs(1.0 / one.ratio(quantity) - 1.0) for one in page.replayed for quantity in STEADY)
    return (
        f"{page.run_id}: {change}; the twin plays {len(page.replayed)} of its stages "
        f"within {worst:.0%} of the tokens/s and TPOT that were seen"
    )


def _fits(page: WhatIfPage) -> str:
    before, after = page.before.server.prediction, page.after.server.prediction
    kv = page.after.server.n_guaranteed
    spread = "" if kv.is_exact else f" ({kv.low:,.0f} to {kv.high:,.0f})"
    slots = f" and {after.n_slots:,} slots" if after.n_slots is not None else ""
    was = f"{before.n_kv:,}" + ("" if before.n_slots is None else f" and {before.n_slots:,}")
    return (
        f"{after.pool.blocks:,} KV blocks (was {before.pool.blocks:,}) guarantee {after.n_kv:,} requests"
        f"{spread}{slots}, where it was {was}"
    )


def _speed(page: WhatIfPage) -> str:
    after, before = page.after, page.before
    tokens, first = after.figure("output_tokens_per_s"), after.figure("ttft_p95_s")
    each = _times(after.figure("tpot_p50_s"), 1000.0)
    slo = "N_slo above every level tried" if after.n_slo is None else f"N_slo {_spread(after.n_slo, _count)}"
    if not page.goal.limits_s:
        slo = "no latency limit is set"
    was = before.figure("output_tokens_per_s").likely
    return (
        f"at {after.at.users:,} users {_spread(tokens, _count)} tokens/s (was {was:,.0f} at "
        f"{before.at.users:,}), TTFT p95 {_spread(first, _three)} s, TPOT p50 {_spread(each, _three)} ms; "
        f"{slo}"
    )


def _wall(after: Foretold) -> str:
    (name, users), *others = after.walls
    first_broken = after.cast.first_broken
    why = ""
    if name == "slo" and first_broken is not None:
        broken = "+".join(LIMITS[limit] for limit in first_broken.likely.broken)
        why = f", {broken} breaks at {first_broken.users:,}"
    beyond = f"; next {WALLS[others[0][0]]} at {others[0][1]:,.0f}" if others else ""
    return f"{WALLS[name]} at {users:,.0f} users{why}{beyond}; N_safe {_spread(after.n_safe, _count)}"


def _table(page: WhatIfPage) -> list[str]:
    sides = (page.before, page.after)
    rows: list[tuple[str, Sequence[str]]] = [
        ("", ["before", "after"]),
        ("server", [side.server.words for side in sides]),
        ("KV blocks", [f"{side.server.prediction.pool.blocks:,}" for side in sides]),
        ("N_kv", [_guaranteed(side) for side in sides]),
        ("N_saturation", [f"{side.server.prediction.n_saturation:,.1f}" for side in sides]),
        ("N_slots", [_slots(side) for side in sides]),
        ("N_slo", ["-" if side.n_slo is None else _spread(side.n_slo, _count) for side in sides]),
        ("N_safe", [_spread(side.n_safe, _count) for side in sides]),
        ("at users", [f"{side.at.users:,}" for side in sides]),
    ]
    for quantity, title, factor in SHOWN:
        rows.append(
            (title, [_spread(_times(side.figure(quantity), factor), _three) for side in sides]),
        )
    rows.append(("wall", [side.walls[0][0] for side in sides]))
    return [f"{name:<{NAME_WIDTH}}{cells[0]:<{SIDE_WIDTH}}{cells[1]}".rstrip() for name, cells in rows]


def _guaranteed(side: Foretold) -> str:
    kv = side.server.n_guaranteed
    return _spread(Interval(low=kv.low, likely=side.server.prediction.n_kv, high=kv.high), _count)


def _slots(side: Foretold) -> str:
    slots = side.server.prediction.n_slots
    return "-" if slots is None else f"{slots:,}"


def _replay(page: WhatIfPage) -> list[str]:
    head = "The calibrated twin beside the run, foretold / seen"
    titles = f"{'users':>7}{'tokens/s':>20}{'TTFT p50 ms':>20}{'TPOT p50 ms':>20}"
    return [head, titles, *(_played(one) for one in page.replayed)]


def _played(one: Replayed) -> str:
    cells = [
        f"{factor * one.foretold[quantity]:,.{digits}f} / {factor * one.seen[quantity]:,.{digits}f}"
        for quantity, factor, digits in PLAYED
    ]
    return f"{one.users:>7,}" + "".join(f"{cell:>20}" for cell in cells)


def _bar(page: WhatIfPage) -> list[str]:
    cost = page.after.server.cost
    off = "what the twin was off beside a real vLLM"
    wide = f", widened to the data sheets' own {cost.low_factor:g} to {cost.high_factor:g}"
    return wrapped(
        "Error bars: ",
        f"{off} ({SOURCE}){wide if page.is_carried else ''}. Before any load test of the change.",
    )


def _times(interval: Interval, factor: float) -> Interval:
    return Interval(low=interval.low * factor, likely=interval.likely * factor, high=interval.high * factor)


def _spread(interval: Interval, show: Callable[[float], str]) -> str:
    likely = show(interval.likely)
    return likely if interval.is_exact else f"{likely} ({show(interval.low)} to {show(interval.high)})"


def _count(number: float) -> str:
    return f"{number:,.0f}"


def _three(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
