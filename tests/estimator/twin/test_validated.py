"""The errors of the twin that are kept as data, against the page that they were measured for."""

from __future__ import annotations

from pathlib import Path

from estimator.twin.validated import MEASURED, SOURCE, Quantity, seen_over_foretold

PAGE = Path(__file__).parents[3] / "docs" / "validation" / "vllm-cpu.md"
COLUMNS: dict[Quantity, tuple[int, float]] = {
    "output_tokens_per_s": (6, 1.0),
    "ttft_p50_s": (7, 1000.0),
    "ttft_p95_s": (8, 1000.0),
    "tpot_p50_s": (9, 1000.0),
}


def test_the_figures_are_those_of_the_page() -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("| load | running")]
    rows = [line.split("|") for start in starts for line in lines[start + 2 : start + 11]]
    for quantity, (column, factor) in COLUMNS.items():
        told = [
            [round(float(part.replace(",", "")) / factor, 6) for part in row[column].split("/")]
            for row in rows
        ]
        assert [[pair.foretold, pair.seen] for pair in MEASURED[quantity]] == told
    assert SOURCE.startswith("docs/validation/vllm-cpu.md")


def test_the_error_bar_is_the_worst_of_all_loads_on_each_side() -> None:
    tokens, tpot = seen_over_foretold("output_tokens_per_s"), seen_over_foretold("tpot_p50_s")
    assert (round(tokens.low, 2), round(tokens.high, 2)) == (0.80, 1.08)
    assert (round(tpot.low, 2), round(tpot.high, 2)) == (0.93, 1.28)
