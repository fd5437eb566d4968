"""Comparison -> a table of 100 columns and sentences that name what fell, or a dict for machines. Pure."""

from __future__ import annotations

import math
from dataclasses import asdict
from itertools import groupby
from typing import Any, Final

from loadtest.reporter.comparison import HIGHER_IS_BETTER, Answer, Change, Comparison
from loadtest.reporter.estimate_text import wrapped
from loadtest.reporter.plain import one_line

TITLES: Final = {"n_safe": "N_safe", "n_max": "N_max", "output_tokens_per_s": "output tokens/s"}
WORDS: Final[dict[Answer, str]] = {
    "same": "same",
    "better": "better",
    "worse": "WORSE",
    "unknown": "cannot be told",
}
NOT_KNOWN: Final = "?"
LEGEND: Final = "?: too few requests, or no higher level, to bound it on this side"


def comparison_text(found: Comparison) -> str:
    """For a person: the two runs, what was set differently, the figures, and the answer in words."""
    parts = (_runs(found), _differences(found), _table(found), answer_lines(found))
    return "\n\n".join("\n".join(map(one_line, part)) for part in parts if part)


def comparison_dict(found: Comparison) -> dict[str, Any]:
    """For machines. Ratios are new over old less one; None: not known."""
    return {
        "answer": found.answer,
        "exit_code": found.exit_code,
        "reason": found.reason,
        "tolerance": found.tolerance,
        "old": {"run_id": found.old.run_id, "status": found.old.status},
        "new": {"run_id": found.new.run_id, "status": found.new.status},
        "differences": [asdict(one) for one in found.differences],
        "changes": [
            {**asdict(one), **{end: _finite(getattr(one, end)) for end in ("ratio", "low", "high")}}
            for one in found.changes
        ],
    }


def _finite(ratio: float | None) -> float | None:
    return ratio if ratio is not None and math.isfinite(ratio) else None


def answer_lines(found: Comparison) -> list[str]:
    """The answer, and one sentence for each figure that decided it."""
    tolerance = f"{found.tolerance * 100:g}%"
    match found.answer:
        case "worse":
            fell = [_sentence(change) for change in found.changes if change.answer == "worse"]
            return [f"WORSE by more than {tolerance}, and not by chance:", *_listed(fell)]
        case "unknown":
            noisy = [_sentence(change) for change in found.changes if change.answer == "unknown"]
            return [
                "CANNOT BE TOLD:",
                *_listed([*([found.reason] if found.reason else []), *noisy]),
                *(["Hold the stages longer, in both runs."] if noisy else []),
            ]
        case "better":
            rose = [_sentence(change) for change in found.changes if change.answer == "better"]
            return [f"BETTER by more than {tolerance}, and nothing is worse:", *_listed(rose)]
        case "same":
            return [f"SAME: no figure is worse by more than {tolerance}.{_at_worst(found)}"]


def _listed(sentences: list[str]) -> list[str]:
    return [line for sentence in sentences for line in wrapped("  ", sentence)]


def _runs(found: Comparison) -> list[str]:
    pairs = (("old", found.old), ("new", found.new))
    return [
        f"{label}  {run.run_id}  {run.model} on {run.engine}  {run.status}, N_safe {run.n_safe.value:g}"
        for label, run in pairs
    ]


def _differences(found: Comparison) -> list[str]:
    if not found.differences:
        return []
    lines = [f"{one.what}: {one.old} -> {one.new}" for one in found.differences]
    return ["Set or installed differently", *_listed(lines)]


def _table(found: Comparison) -> list[str]:
    lines = [f"{'':<18}{'old':>12}{'new':>12}{'change':>10}  {'95% interval':<20}"]
    for (users, rate_per_s), changes in groupby(found.changes, key=lambda one: (one.users, one.rate_per_s)):
        if users is not None:
            lines.append(
                f"at {users:,} users" + (f", {rate_per_s:g} requests a second" if rate_per_s else "")
            )
        lines += [_row(change) for change in changes]
    return [*lines, *([LEGEND] if any(NOT_KNOWN in line for line in lines) else [])]


def _row(change: Change) -> str:
    indent = "" if change.users is None else "  "
    interval = f"{_percent(change.low)} to {_percent(change.high)}"
    return (
        f"{indent + title(change.name):<18}{shown(change.name, change.old.value):>12}"
        f"{shown(change.name, change.new.value):>12}{_percent(change.ratio):>10}  {interval:<20}"
        f"{WORDS[change.answer]}"
    )


def title(name: str) -> str:
    """`ttft_p95_s` is TTFT p95."""
    if name in TITLES:
        return TITLES[name]
    latency, quantile, _ = name.split("_")
    return f"{latency.upper()} {quantile}"


def shown(name: str, value: float) -> str:
    """With its unit where it is a time."""
    if not name.endswith("_s") or name in TITLES:
        return f"{value:,.0f}"
    return f"{value * 1000:,.1f} ms" if value < 1 else f"{value:,.2f} s"


def _percent(ratio: float | None) -> str:
    return NOT_KNOWN if _finite(ratio) is None else f"{ratio:+.1%}"


def _sentence(change: Change) -> str:
    verb = "rose" if change.ratio > 0 else "fell"
    where = "" if change.users is None else f" at {change.users:,} users"
    was = f"{shown(change.name, change.old.value)} to {shown(change.name, change.new.value)}"
    by = f" by {abs(change.ratio):.1%}" if math.isfinite(change.ratio) else ""
    chance = ", which may be noise" if change.answer == "unknown" else ""
    ends = f"95% interval {_percent(change.low)} to {_percent(change.high)}"
    return f"{title(change.name)}{where} {verb}{by}, from {was} ({ends}){chance}."


def _at_worst(found: Comparison) -> str:
    """What the intervals leave possible: "same" is no proof of "equal"."""
    possible = [
        (-end if change.name in HIGHER_IS_BETTER else end, change)
        for change in found.changes
        if change.users is not None
        and (end := change.low if change.name in HIGHER_IS_BETTER else change.high) is not None
    ]
    share, change = max(possible, key=lambda one: one[0], default=(0.0, None))
    if change is None or share <= found.tolerance:
        return ""
    where = f"{title(change.name)} at {change.users:,} users"
    return f" Noise leaves room for {where} to be {share:.1%} worse; longer stages leave less."
