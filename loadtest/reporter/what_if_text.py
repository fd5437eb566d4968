"""What-if rows -> one table of 100 columns, or CSV. Pure."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Sequence
from typing import Final

from estimator.units import GIB
from estimator.what_if import WhatIf
from loadtest.reporter.estimate_text import n_safe

WIDTH: Final = 100
COLUMNS: Final = (
    *("gpu", "GPUs", "kv_cache_dtype", "max_model_len", "weights_gib", "kv_gib", "num_blocks"),
    *("n_guaranteed", "n_sustained", "n_saturation", "n_slots", "n_safe", "limited_by", "refusal"),
)
SHOWN: Final = (
    *(("gpu", 17, "<"), ("GPUs", 5, ">"), ("KV", 8, ">"), ("max len", 9, ">"), ("weights", 9, ">")),
    *(("KV GiB", 9, ">"), ("guarant.", 10, ">"), ("sustained", 10, ">"), ("slots", 7, ">")),
    *(("N_safe", 8, ">"), ("limit", 7, ">")),
)


def what_if_text(rows: Sequence[WhatIf]) -> str:
    """The roomiest server first; those that do not start at the end, each with its reason."""
    lines = ["".join(f"{name:{side}{width}}" for name, width, side in SHOWN).rstrip()]
    lines += [_line(row) for row in rows if row.answer is not None]
    lines += [part for row in rows if row.answer is None for part in _refused(row)]
    lines += ["", "N_safe = floor(0.8 x min(guaranteed, slots)), likely values, before any load test."]
    return "\n".join(lines)


def what_if_csv(rows: Sequence[WhatIf]) -> str:
    """The same with every figure, a header first."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(_cells(row) for row in rows)
    return out.getvalue().rstrip("\n")


def _line(row: WhatIf) -> str:
    answer = row.answer
    assert answer is not None
    prediction, ledger = answer.prediction, answer.budget.ledger
    cells = (
        row.gpu.name,
        f"{row.gpus}",
        row.engine.kv_cache_dtype[:7],
        f"{answer.budget.limits.max_model_len:,}",
        f"{ledger.line('weights').size_bytes.likely / GIB:,.1f}",
        f"{ledger.kv_bytes.likely / GIB:,.1f}",
        f"{prediction.n_guaranteed:,}",
        f"{prediction.n_sustained:,}",
        f"{prediction.n_slots:,}",
        f"{n_safe(answer).likely:,.0f}",
        prediction.limited_by,
    )
    pairs = zip(cells, SHOWN, strict=True)
    return "".join(f"{cell:{side}{width}}" for cell, (_, width, side) in pairs).rstrip()


def _refused(row: WhatIf) -> list[str]:
    start = f"{row.gpu.name:<17}{row.gpus:>5}{row.engine.kv_cache_dtype[:7]:>8}"
    length = "" if row.engine.max_model_len is None else f"{row.engine.max_model_len:,}"
    start += f"{length:>9}  "
    return textwrap.wrap(row.refusal or "", WIDTH, initial_indent=start, subsequent_indent=" " * len(start))


def _cells(row: WhatIf) -> tuple[object, ...]:
    head = (row.gpu.name, row.gpus, row.engine.kv_cache_dtype)
    answer = row.answer
    if answer is None:
        return (*head, row.engine.max_model_len or "", *[""] * 9, row.refusal)
    prediction, ledger = answer.prediction, answer.budget.ledger
    return (
        *head,
        answer.budget.limits.max_model_len,
        round(ledger.line("weights").size_bytes.likely / GIB, 3),
        round(ledger.kv_bytes.likely / GIB, 3),
        int(answer.budget.blocks.likely),
        prediction.n_guaranteed,
        prediction.n_sustained,
        round(prediction.n_saturation, 2),
        prediction.n_slots,
        int(n_safe(answer).likely),
        prediction.limited_by,
        "",
    )
