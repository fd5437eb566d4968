"""Exact binomial answers, against published tables and simulation."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.sequential import (
    binomial_at_least,
    binomial_at_most,
    design_effect,
    requests_needed,
    upper_bound,
    weigh,
)


@pytest.mark.parametrize(
    ("q", "confidence", "needed"),
    [
        (0.10, 0.95, [29, 46, 61, 76, 103, 167]),
        (0.05, 0.95, [59, 93, 124, 153, 208, 336]),
        (0.05, 0.99, [90, 130, 165, 198, 259, 398]),
        (0.01, 0.95, [299, 473, 628, 773, 1049, 1693]),
        (0.01, 0.99, [459, 662, 838, 1001, 1307, 2010]),
    ],
)
def test_the_requests_needed_are_those_of_the_exact_test(
    q: float, confidence: float, needed: list[int]
) -> None:
    assert [requests_needed(k, q=q, confidence=confidence) for k in (0, 1, 2, 3, 5, 10)] == needed


@given(n=st.integers(1, 400), k=st.integers(-1, 401), p=st.floats(0.001, 0.999))
def test_both_tails_cover_everything(n: int, k: int, p: float) -> None:
    assert binomial_at_most(k, n, p) + binomial_at_least(k + 1, n, p) == pytest.approx(1.0, abs=1e-9)


def test_the_upper_bound_is_the_share_that_leaves_five_percent_of_doubt() -> None:
    assert upper_bound(0, 59, confidence=0.95) == pytest.approx(1 - 0.05 ** (1 / 59), abs=1e-8)
    assert upper_bound(3, 153, confidence=0.95) < 0.05 < upper_bound(3, 152, confidence=0.95)
    assert upper_bound(5, 5, confidence=0.95) == 1.0


def test_one_clean_request_less_than_needed_proves_nothing() -> None:
    assert weigh([False] * 236, q=0.05).answer == "good"  # 59 x the default design effect 4
    short = weigh([False] * 235, q=0.05)
    assert (short.answer, short.more_needed) == ("unknown", 1)


def test_many_violations_are_bad_and_some_are_unknown() -> None:
    spread = [i % 3 == 0 for i in range(600)]
    assert weigh(spread, q=0.05).answer == "bad"
    assert weigh([i % 20 == 0 for i in range(600)], q=0.05).answer == "unknown"


def test_one_violation_among_few_condemns_nobody() -> None:
    assert weigh([True], q=0.05).answer == "unknown"
    assert weigh([True, False, False], q=0.05).answer == "unknown"
    assert weigh([True] * 8, q=0.05).answer == "bad"


def test_nothing_is_known_from_nothing() -> None:
    assert weigh([], q=0.05).answer == "unknown"


def test_requests_that_fail_together_count_for_less() -> None:
    rng = random.Random(3)
    alone = [rng.random() < 0.2 for _ in range(2000)]
    together = [bad for _ in range(50) for bad in [rng.random() < 0.2] * 40]
    assert design_effect(alone) < 2
    assert design_effect(together) > 10


def test_a_server_at_the_limit_is_passed_in_at_most_five_percent_of_runs() -> None:
    rng = random.Random(11)
    passed = sum(
        weigh([rng.random() < 0.05 for _ in range(600)], q=0.05).answer == "good" for _ in range(300)
    )
    assert passed <= 15
