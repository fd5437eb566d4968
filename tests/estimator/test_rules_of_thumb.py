"""The textbook formulas, as people use them: those that need no model, and the words of all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.rules_of_thumb import (
    RULES,
    gpu_flops_per_s,
    prefill_tokens_per_s,
    textbook_requests,
    threads_bytes,
)
from estimator.spec import SpecError
from estimator.units import MIB


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


def test_1280_cores_at_1400_mhz_are_3_584_tflops() -> None:
    assert gpu_flops_per_s(1280, 1400, 2) == 3_584_000_000_000


def test_prefill_divides_by_two_operations_a_parameter() -> None:
    assert prefill_tokens_per_s(989.4e12, 8_000_000_000) == pytest.approx(61_837.5)


def test_each_thread_adds_what_the_peak_is_above_the_resident_memory() -> None:
    assert threads_bytes(12_000 * MIB, 12_500 * MIB, 4) == 14_000 * MIB
    assert threads_bytes(12_000 * MIB, 12_500 * MIB, 1) == 12_500 * MIB


@pytest.mark.parametrize(("resident", "peak", "threads"), [(-1, 5, 1), (6, 5, 1), (4, 5, 0)])
def test_a_peak_below_what_is_resident_and_no_thread_are_refused(
    resident: int, peak: int, threads: int
) -> None:
    with pytest.raises(SpecError, match=r"^(resident_bytes|threads) must be"):
        threads_bytes(resident, peak, threads)


def test_every_rule_says_when_it_misleads_in_one_sentence() -> None:
    assert all(rule.misleads.endswith(".") and rule.misleads.count(". ") == 0 for rule in RULES.values())
