"""The table of foretold against seen, as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from twin_cases import Case, Server
from twin_figures import Figures, wall_of

COLUMNS: Final[Sequence[tuple[str, Callable[[Figures], str]]]] = (
    ("running", lambda f: f"{f.running:.1f}"),
    ("waiting", lambda f: f"{f.waiting:.1f}"),
    ("KV", lambda f: f"{f.kv_usage:.0%}"),
    ("preempted a request", lambda f: f"{f.preemptions_per_request:.2f}"),
    ("tokens/s", lambda f: f"{f.output_tokens_per_s:,.0f}"),
    ("TTFT p50 ms", lambda f: f"{f.ttft_p50_s * 1e3:,.0f}"),
    ("TTFT p95 ms", lambda f: f"{f.ttft_p95_s * 1e3:,.0f}"),
    ("TPOT p50 ms", lambda f: f"{f.tpot_p50_s * 1e3:.1f}"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    case: Case
    server: Server
    foretold: Figures
    seen: Figures


def markdown(rows: Sequence[Row]) -> str:
    """Each cell: foretold / seen."""
    heads = ["load", *(name for name, _ in COLUMNS), "wall"]
    lines = [f"| {' | '.join(heads)} |", "|---|" + "---:|" * len(COLUMNS) + "---|"]
    for row in rows:
        cells = [f"{show(row.foretold)} / {show(row.seen)}" for _, show in COLUMNS]
        walls = f"{wall_of(row.foretold, row.server)} / {wall_of(row.seen, row.server)}"
        lines.append(f"| {' | '.join([_load(row.case), *cells, walls])} |")
    return "\n".join(lines)


def _load(case: Case) -> str:
    many = f"{case.users} users" if case.users else f"{case.rate_per_s:g} requests/s"
    return f"{case.name}, {many}"
