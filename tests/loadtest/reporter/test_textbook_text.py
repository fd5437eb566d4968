"""The textbook sheet of a model: complete, in both units, and honest about each rule."""

from __future__ import annotations

import json
from typing import Any

from estimator.rules_of_thumb import RULES
from estimator.textbook_memory import TextbookModel
from loadtest.reporter.textbook_sheet import SHEET, Figure, TextbookCase
from loadtest.reporter.textbook_text import WIDTH, textbook_sheet_dict, textbook_sheet_text

LLAMA_3_8B = TextbookModel(
    name="Llama-3-8B",
    parameters=8_030_261_248,
    layers=32,
    attention_heads=32,
    kv_heads=8,
    head_dim=128,
    hidden_size=4096,
)
H100_BYTES = 85_520_809_984


def case(**changes: Any) -> TextbookCase:
    facts: dict[str, Any] = {"model": LLAMA_3_8B, "tokens": 8192, "gpu_memory_bytes": H100_BYTES}
    return TextbookCase(**facts | changes)


def figure(rule: str, name: str, of: TextbookCase) -> Figure:
    return next(figure for figure in SHEET[rule](of) if figure.name == name)


def test_the_sheet_has_figures_for_every_rule_in_its_order() -> None:
    assert list(SHEET) == list(RULES)
    assert all(SHEET[rule](case()) for rule in RULES)


def test_the_text_shows_every_formula_and_where_it_misleads_within_100_columns() -> None:
    text = textbook_sheet_text(case())
    assert all(rule.formula in text for rule in RULES.values())
    assert text.count("  Misleads: ") == len(RULES)
    assert max(len(line) for line in text.splitlines()) <= WIDTH


def test_huge_models_stay_within_100_columns() -> None:
    huge = TextbookModel(
        name="huge",
        parameters=10**13,
        layers=1000,
        attention_heads=1024,
        kv_heads=1024,
        head_dim=1024,
        hidden_size=10**6,
    )
    text = textbook_sheet_text(case(model=huge, tokens=10**7, batch=10**4))
    assert max(len(line) for line in text.splitlines()) <= WIDTH


def test_memory_is_shown_in_gb_and_in_gib() -> None:
    text = textbook_sheet_text(case())
    assert "GB is 10**9 bytes" in text
    assert "GiB is 2**30" in text
    fp16 = next(line for line in text.splitlines() if line.startswith("  fp16 "))
    assert fp16.split()[1:5] == ["16.06", "GB", "14.96", "GiB"]


def test_a_gpu_that_holds_ten_requests_and_a_half_promises_eight() -> None:
    assert figure("requests", "requests", case()).value == 10
    assert figure("reserve", "promise", case()).value == 8


def test_a_request_that_exactly_fits_is_counted() -> None:
    one = case().memory(1)
    fits = case(gpu_memory_bytes=one.fixed_bytes + 3 * one.growing_bytes)
    too_small = case(gpu_memory_bytes=one.fixed_bytes + 3 * one.growing_bytes - 1)
    assert figure("requests", "requests", fits).value == 3
    assert figure("requests", "requests", too_small).value == 2


def test_weights_above_the_gpu_leave_no_request_and_say_why() -> None:
    small = case(gpu_memory_bytes=10**9)
    requests = figure("requests", "requests", small)
    assert requests.value == 0
    assert "fills" in requests.arithmetic
    assert figure("reserve", "promise", small).value == 0


def test_without_a_gpu_the_textbooks_own_example_is_256_and_204_after_the_reserve() -> None:
    no_gpu = case(gpu_memory_bytes=None)
    assert figure("requests", "the textbook's example", no_gpu).value == 256
    assert figure("reserve", "promise", no_gpu).value == 204


def test_the_slope_of_the_formulas_is_six_times_the_cache_that_is_kept() -> None:
    formulas = figure("line", "slope of these formulas", case()).value
    assert formulas / figure("line", "slope of the cache alone", case()).value == 6


def test_the_dict_is_plain_json_with_a_unit_for_every_figure() -> None:
    facts = json.loads(json.dumps(textbook_sheet_dict(case())))
    assert facts["model"]["parameters"] == LLAMA_3_8B.parameters
    assert list(facts["rules"]) == list(RULES)
    fp16 = next(row for row in facts["rules"]["weights"]["figures"] if row["name"] == "fp16")
    assert (fp16["value"], fp16["unit"]) == (16_060_522_496, "bytes")
    assert facts["rules"]["weights"]["misleads"] == RULES["weights"].misleads
