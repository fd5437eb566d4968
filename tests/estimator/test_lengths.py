"""Distributions of token counts: bounds, the inverse distribution, and what is refused."""

from __future__ import annotations

import copy
import pickle
from bisect import bisect_left
from statistics import NormalDist, fmean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.spec import Bucket, Lengths, SpecError, Workload

COUNTS = st.integers(1, 5000)
SHARES = st.floats(0, 1)


@st.composite
def lengths(draw: st.DrawFn) -> Lengths:
    low = draw(COUNTS)
    ends: Any = {"min": low, "max": low + draw(st.integers(0, 5000))}
    spread = st.floats(0.01, 3)
    return draw(
        st.one_of(
            st.just(Lengths.constant(low)),
            st.just(Lengths(kind="uniform", **ends)),
            st.builds(Lengths, kind=st.just("normal"), mean=COUNTS, sd=spread, **_just(ends)),
            st.builds(Lengths, kind=st.just("lognormal"), median=COUNTS, sigma=spread, **_just(ends)),
            st.builds(Lengths, kind=st.just("empirical"), values=st.lists(COUNTS, min_size=1).map(tuple)),
            st.lists(st.integers(1, 90), min_size=1, unique=True).map(_decades),
        )
    )


def _just(ends: dict[str, int]) -> dict[str, st.SearchStrategy[int]]:
    return {name: st.just(value) for name, value in ends.items()}


def _decades(starts: list[int]) -> Lengths:
    buckets = tuple(Bucket(min=10 * one, max=10 * one + 9, weight=one) for one in starts)
    return Lengths(kind="empirical", buckets=buckets)


@given(lengths(), SHARES, SHARES)
def test_more_draws_never_lie_below_a_shorter_length(one: Lengths, share: float, other: float) -> None:
    low, high = sorted((share, other))
    assert one.shortest <= one.at(low) <= one.at(high) <= one.longest


@given(lengths())
def test_the_ends_can_occur_and_a_copy_draws_alike(one: Lengths) -> None:
    if one.kind in ("constant", "uniform", "empirical"):
        assert (one.at(0), one.at(1)) == (one.shortest, one.longest)
    for twin in (pickle.loads(pickle.dumps(one)), copy.deepcopy(one)):
        assert twin == one
        assert twin.at(0.3) == one.at(0.3)


@given(st.lists(COUNTS, min_size=1, max_size=40), SHARES)
def test_a_share_of_seen_values_lies_at_or_below_what_it_draws(values: list[int], share: float) -> None:
    drawn = Lengths(kind="empirical", values=tuple(values)).at(share)
    ordered = sorted(values)
    assert drawn in values
    assert bisect_left(ordered, drawn) <= share * len(values) + 1e-6


def test_a_weight_counts_a_value_so_many_times() -> None:
    often = Lengths(kind="empirical", values=(5, 9), weights=(3, 1))
    assert [often.at(share) for share in (0.0, 0.74, 0.75, 1.0)] == [5, 5, 9, 9]
    assert [often.at(i / 100) for i in range(100)] == [
        Lengths(kind="empirical", values=(9, 5, 5, 5)).at(i / 100) for i in range(100)
    ]


def test_a_bucket_is_even_inside_and_as_likely_as_its_weight() -> None:
    two = Lengths(
        kind="empirical", buckets=(Bucket(min=101, max=200, weight=1), Bucket(min=1, max=10, weight=4))
    )
    drawn = [two.at((i + 0.5) / 1000) for i in range(1000)]
    assert sum(value <= 10 for value in drawn) == 800
    assert {value: drawn.count(value) for value in range(1, 11)} == dict.fromkeys(range(1, 11), 80)


def test_a_normal_draws_its_quantiles_and_is_clipped() -> None:
    bell = Lengths(kind="normal", mean=500, sd=100, min=300, max=700)
    for share in (0.1, 0.5, 0.9):
        assert bell.at(share) == round(NormalDist(500, 100).inv_cdf(share))
    assert (bell.at(0), bell.at(1)) == (300, 700)
    assert fmean(bell.at((i + 0.5) / 999) for i in range(999)) == pytest.approx(500, abs=1)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"kind": "normal", "mean": 5, "sd": 1}, "lengths of kind normal take"),
        ({"kind": "normal", "mean": 5, "sd": 0, "min": 1, "max": 9}, "sd must be positive"),
        ({"kind": "normal", "mean": float("nan"), "sd": 1, "min": 1, "max": 9}, "mean must be positive"),
        ({"kind": "lognormal", "median": 5, "sigma": 99, "min": 1, "max": 9}, "sigma must be at most 20"),
        ({"kind": "empirical"}, "lengths of kind empirical take"),
        ({"kind": "empirical", "values": ()}, "at least one value"),
        ({"kind": "empirical", "values": (0,)}, "a bucket runs from min to max"),
        ({"kind": "empirical", "values": (1, 2), "weights": (1.0,)}, "2 values have 1 weights"),
        ({"kind": "empirical", "values": (1,), "weights": (-1.0,)}, "weight must be positive"),
        ({"kind": "constant", "tokens": 4, "values": (1,)}, "lengths of kind constant take"),
        (
            {
                "kind": "empirical",
                "buckets": (Bucket(min=1, max=9, weight=1), Bucket(min=9, max=12, weight=1)),
            },
            "buckets overlap at 9",
        ),
    ],
)
def test_lengths_that_cannot_be_are_refused(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SpecError, match=sentence):
        Lengths(**fields)


def test_the_longest_request_may_be_shorter_than_the_longest_of_both() -> None:
    inputs, outputs = Lengths.constant(100), Lengths(kind="uniform", min=1, max=50)
    assert Workload(input_tokens=inputs, output_tokens=outputs).longest_tokens == 150
    known = Workload(input_tokens=inputs, output_tokens=outputs, request_tokens_max=120)
    assert known.longest_tokens == 120
