"""The textbook formulas, as people use them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.rules_of_thumb import (
    RULES,
    inference_bytes,
    kv_bytes_per_token,
    prefill_tokens_per_s,
    textbook_requests,
    training_bytes,
)
from estimator.spec import SpecError


def test_two_gib_and_eight_mib_are_256_requests() -> None:
    assert textbook_requests(2, 8) == 256


@given(st.integers(1, 10_000), st.integers(1, 10_000))
def test_the_division_is_exact_where_floats_are_not(tenths_of_mib: int, requests: int) -> None:
    assert textbook_requests(tenths_of_mib * requests / 10 / 1024 * 1024, tenths_of_mib / 10) == (
        requests * 1024
    )


@pytest.mark.parametrize(("free", "each"), [(-1, 8), (2, 0), (2, -8), (float("nan"), 8), (2, float("inf"))])
def test_impossible_quantities_are_refused(free: float, each: float) -> None:
    with pytest.raises(SpecError, match=r"must be (above|at least) 0"):
        textbook_requests(free, each)


def test_grouped_query_attention_makes_the_kv_rule_four_times_too_high_for_qwen3_8b() -> None:
    assert kv_bytes_per_token(36, 4096) == 4 * 147_456


def test_the_other_rules_are_what_textbooks_print() -> None:
    assert inference_bytes(100) == 120
    assert training_bytes(7_000_000_000) == 112_000_000_000
    assert prefill_tokens_per_s(989.4e12, 8_000_000_000) == pytest.approx(61_837.5)


def test_every_rule_says_when_it_misleads_in_one_sentence() -> None:
    assert all(rule.misleads.endswith(".") and rule.misleads.count(". ") == 0 for rule in RULES.values())
