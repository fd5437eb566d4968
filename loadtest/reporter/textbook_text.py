"""The whole textbook sheet of a model -> text of 100 columns, or a dict for machines. Pure."""

from __future__ import annotations

import textwrap
from dataclasses import asdict
from typing import Any, Final

from estimator.rules_of_thumb import RULES
from loadtest.reporter.textbook_sheet import SHEET, Figure, TextbookCase, two_units

WIDTH: Final = 100
NAME_WIDTH: Final = 25
VALUE_WIDTH: Final = 14
UNITS_NOTE: Final = (
    "GB is 10**9 bytes, what data sheets count in; GiB is 2**30, what CUDA, nvidia-smi and vLLM count in. "
    "Both are given: 1 GiB is 1.074 GB."
)


def textbook_sheet_text(case: TextbookCase) -> str:
    """Every rule with its figures for this model, and where it misleads."""
    return "\n\n".join("\n".join(part) for part in (_title(case), *(_rule(case, key) for key in RULES)))


def textbook_sheet_dict(case: TextbookCase) -> dict[str, Any]:
    """The same for a machine: plain JSON types, every figure with its unit."""
    return {
        **asdict(case),
        "rules": {
            key: asdict(rule) | {"figures": [asdict(figure) for figure in SHEET[key](case)]}
            for key, rule in RULES.items()
        },
    }


def _title(case: TextbookCase) -> list[str]:
    requests = "1 request" if case.batch == 1 else f"{case.batch:,} requests"
    return [
        f"The textbook sheet of {case.model.name}: {requests} of {case.tokens:,} tokens | "
        f"weights {case.weight_dtype} | KV cache {case.cache_dtype}",
        *_wrapped("", UNITS_NOTE),
    ]


def _rule(case: TextbookCase, key: str) -> list[str]:
    rows = [row for figure in SHEET[key](case) for row in _row(figure)]
    return [RULES[key].formula, *rows, *_wrapped("  Misleads: ", RULES[key].misleads)]


def _row(figure: Figure) -> list[str]:
    cells = two_units(figure.value) if figure.unit == "bytes" else (_number(figure.value), figure.unit)
    shown = "".join(f"{cell:>{VALUE_WIDTH}}" for cell in cells)
    return _wrapped(f"  {figure.name:<{NAME_WIDTH}}{shown}  ", figure.arithmetic)


def _number(value: float) -> str:
    for power in (12, 9):
        if value >= 10**power:
            return f"{value / 10**power:,.3f}e{power}"
    return f"{value:,.0f}" if float(value).is_integer() or value >= 1000 else f"{value:,.4g}"


def _wrapped(start: str, text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=start, subsequent_indent=" " * len(start))
