"""How many requests a closed loop sustains: between the promise and saturation."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estimator.kv_group import full_group
from estimator.spec import Lengths, Workload
from estimator.sustained import (
    PREEMPTION_CHANCE_MAX,
    held_histogram,
    n_sustained,
    preemption_chance,
)

GROUPS = (full_group(16),)
CHAT = Workload(
    input_tokens=Lengths(kind="lognormal", median=900, sigma=0.6, min=50, max=4000),
    output_tokens=Lengths(kind="lognormal", median=250, sigma=0.7, min=5, max=1500),
)


def test_a_histogram_is_a_distribution_whose_mean_is_the_mean_held() -> None:
    constant = held_histogram(GROUPS, Workload.constant(1000, 300))
    assert sum(constant.values()) == pytest.approx(1.0)
    assert min(constant) == 63
    assert max(constant) == 82
    assert sum(held * share for held, share in constant.items()) == pytest.approx(72.45, rel=0.005)


def test_a_long_answer_weighs_by_how_long_it_runs() -> None:
    lengths = Lengths(kind="uniform", min=10, max=2000)
    mixed = held_histogram(GROUPS, Workload(input_tokens=Lengths.constant(16), output_tokens=lengths))
    mean_held = sum(held * share for held, share in mixed.items())
    # output n runs n steps at about n/2 tokens: E[n^2/2] / E[n] = 2000/3 tokens, and half a block of rounding
    assert mean_held == pytest.approx(1 + 2000 / 3 / 16 + 0.5, rel=0.03)


@given(
    usable=st.integers(200, 200_000),
    prompt=st.integers(1, 3000),
    output=st.integers(1, 2000),
)
@settings(max_examples=60, deadline=None)
def test_sustained_lies_between_the_promise_and_saturation(usable: int, prompt: int, output: int) -> None:
    histogram = held_histogram(GROUPS, Workload.constant(prompt, output))
    guaranteed = usable // max(histogram)
    saturation = usable / sum(held * share for held, share in histogram.items())
    assert guaranteed <= n_sustained(histogram, usable, guaranteed) <= max(guaranteed, saturation)


def test_more_blocks_never_sustain_fewer() -> None:
    histogram = held_histogram(GROUPS, CHAT)
    counts = [n_sustained(histogram, usable, usable // max(histogram)) for usable in range(500, 20_000, 250)]
    assert counts == sorted(counts)


def test_the_share_of_saturation_that_can_be_sustained_grows_with_the_pool() -> None:
    """Averaging: among many requests the sum strays less."""
    histogram = held_histogram(GROUPS, CHAT)
    mean = sum(held * share for held, share in histogram.items())
    small, large = (n_sustained(histogram, usable, 0) * mean / usable for usable in (2_000, 200_000))
    assert small < 0.75 < 0.9 < large


def test_the_bound_holds_against_draws() -> None:
    """The chance of one overflow at one moment, by 20,000 draws, is below the bound of that moment."""
    histogram = held_histogram(GROUPS, CHAT)
    held, shares = list(histogram), list(histogram.values())
    draw = random.Random(7)
    requests, usable = 40, 3_800
    sums = [sum(draw.choices(held, shares, k=requests)) for _ in range(20_000)]
    seen = sum(total > usable for total in sums) / len(sums)
    one_moment = preemption_chance(histogram, usable, requests)
    assert 0.0001 < seen < 0.5
    assert one_moment >= seen


def test_what_always_fits_is_never_preempted() -> None:
    histogram = held_histogram(GROUPS, Workload.constant(1000, 300))
    assert preemption_chance(histogram, 82 * 10, 10) == 0.0
    assert preemption_chance(histogram, 82 * 10, 11) > PREEMPTION_CHANCE_MAX
