"""Counted gaps give the figures of the gaps: mean and spread exactly, quantiles to a stated error."""

from __future__ import annotations

import math
from array import array
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.records import StreamCounts
from loadtest.row_file import decode_line, encode_row
from loadtest.stream_counts import (
    GAP_ERROR_MAX,
    SECOND_NS,
    Gaps,
    Tally,
    added_up,
    slot_middle_ns,
    slot_of,
    slot_start_ns,
)

HOUR_NS = 3600 * SECOND_NS
gap_lists = st.lists(st.integers(0, HOUR_NS) | st.integers(15_000_000, 25_000_000), max_size=60)


def counted(gaps_ns: list[int]) -> Gaps:
    gaps = Gaps()
    gaps.add(array("q", sorted(gaps_ns)), array("q"))
    return gaps


@given(st.integers(0, HOUR_NS))
def test_a_slot_holds_its_gap_and_its_middle_is_near(gap_ns: int) -> None:
    slot = slot_of(gap_ns)
    assert slot_start_ns(slot) <= gap_ns < slot_start_ns(slot + 1)
    assert abs(slot_middle_ns(slot) - gap_ns) <= GAP_ERROR_MAX * gap_ns
    assert slot_of(gap_ns + 1) in (slot, slot + 1)


even_gaps = st.lists(st.sampled_from([20_000_000, 20_300_000, 20_900_000, 150, 200]), min_size=16)


@given(gap_lists | even_gaps)
def test_every_gap_is_counted_in_its_slot_and_no_slot_is_empty(gaps_ns: list[int]) -> None:
    assert dict(counted(gaps_ns).slots) == dict(Counter(map(slot_of, gaps_ns)))


@given(gap_lists.filter(bool), st.floats(0, 1))
def test_quantiles_are_numpys_within_the_stated_error(gaps_ns: list[int], share: float) -> None:
    (found_s,) = counted(gaps_ns).quantiles_s(share)
    assert found_s * 1e9 == pytest.approx(np.quantile(gaps_ns, share), rel=GAP_ERROR_MAX + 1e-9, abs=1e-6)


@given(gap_lists)
def test_mean_and_standard_deviation_are_exact(gaps_ns: list[int]) -> None:
    gaps = counted(gaps_ns)
    assert gaps.mean_s * 1e9 == pytest.approx(np.mean(gaps_ns or 0), rel=1e-12)
    mean = sum(gaps_ns) / max(len(gaps_ns), 1)
    spread = math.fsum((gap - mean) ** 2 for gap in gaps_ns) / max(len(gaps_ns), 1)
    assert gaps.std_s * 1e9 == pytest.approx(math.sqrt(spread), rel=1e-9, abs=1e-3)


def test_a_thousand_million_gaps_keep_a_spread_that_floats_would_lose() -> None:
    count, gap_ns = 10**9, 20_000_000
    gaps = Gaps(count=2 * count, sum_ns=count * (2 * gap_ns + 2))
    gaps.sum_squares_ns2 = count * (gap_ns**2 + (gap_ns + 2) ** 2)
    assert gaps.std_s == pytest.approx(1e-9)


@given(st.lists(st.tuples(st.integers(0, 30 * SECOND_NS), gap_lists), max_size=8), st.integers(0, 8))
def test_requests_counted_in_any_number_of_rows_add_up_to_one(
    requests: list[tuple[int, list[int]]], cut: int
) -> None:
    """`cut`: where a worker wrote what it had; rows then pass through their file's form."""
    tally, rows, whole = Tally(3), list[StreamCounts](), Gaps()
    for position, (intended_ns, gaps_ns) in enumerate(requests):
        token_ns = array("q", np.cumsum([intended_ns, *gaps_ns]).tolist())
        tally.add(intended_ns, array("q", sorted(gaps_ns)), token_ns)
        whole.add(array("q", sorted(gaps_ns)), token_ns)
        if position == cut:
            rows += tally.taken()
    rows += tally.taken()
    assert list(tally.taken()) == []
    assert [decode_line(encode_row(row)[:-1]) for row in rows] == rows
    assert added_up(rows, 0, 31) == whole
    assert whole.chunks.total() == sum(1 + len(gaps_ns) for _, gaps_ns in requests)
    parts = [added_up(rows, second, second + 1).count for second in range(31)]
    assert sum(parts) == whole.count


def test_without_a_gap_every_figure_is_zero() -> None:
    assert (Gaps().mean_s, Gaps().std_s, Gaps().quantiles_s(0.5, 0.99)) == (0.0, 0.0, [0.0, 0.0])
