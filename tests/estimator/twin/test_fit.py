"""The fit finds the coefficients that made the steps, and says how far it is off when nothing fits."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estimator.spec import SpecError
from estimator.twin.cost import ServerCost, StepCost
from estimator.twin.fit import (
    CpuSeen,
    FrontEndSeen,
    StepSeen,
    fit_front_end,
    fit_server_cost,
    fit_step_cost,
    predicted_s,
)

GPU = StepCost(
    fixed_s=0.002,
    compute_s_per_token=3e-5,
    weights_s=0.006,
    context_s_per_token=2e-8,
    sequence_s=2e-5,
    attention_s_per_pair=5e-9,
)
SHAPES = [
    *[(tokens, 0, tokens, tokens * tokens // 2) for tokens in (32, 128, 256, 512, 1024, 2000)],
    *[(0, streams, 96 * streams, 0) for streams in (1, 2, 4, 8, 16, 32)],
    *[(0, streams, 1056 * streams, 0) for streams in (1, 4, 8)],
]
NOTHING = FrontEndSeen(request_s=0.0)


def seen(cost: StepCost, off: float = 0.0, seed: int = 1) -> list[StepSeen]:
    rng = random.Random(seed)
    shapes = [
        StepSeen(prefill_tokens=p, decoding=d, context_tokens=c, attended_pairs=pairs, seconds=1.0)
        for p, d, c, pairs in SHAPES
    ]
    return [
        replace(shape, seconds=predicted_s(cost, shape) * (1.0 + off * rng.uniform(-1.0, 1.0)))
        for shape in shapes
    ]


def test_exact_steps_are_fitted_exactly() -> None:
    steps = seen(GPU)
    found = fit_step_cost(steps)
    assert [predicted_s(found, step) for step in steps] == pytest.approx([s.seconds for s in steps], rel=1e-3)


def test_a_fit_reaches_beyond_what_was_seen() -> None:
    """Calibrated with 32 streams at most, asked about 256."""
    far = StepSeen(prefill_tokens=512, decoding=256, context_tokens=200_000, attended_pairs=0, seconds=1.0)
    assert predicted_s(fit_step_cost(seen(GPU)), far) == pytest.approx(predicted_s(GPU, far), rel=0.05)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000))
def test_noise_moves_the_fit_by_little_more_than_itself(seed: int) -> None:
    found = fit_step_cost(seen(GPU, off=0.03, seed=seed))
    for step in seen(GPU):
        assert predicted_s(found, step) == pytest.approx(step.seconds, rel=0.06)


def test_no_coefficient_is_negative_even_where_that_would_fit_better() -> None:
    falling = [replace(step, seconds=0.01 / (1 + step.decoding)) for step in seen(GPU)]
    found = fit_step_cost(falling)  # StepCost itself refuses a negative one
    assert found.sequence_s == 0.0


def test_the_range_holds_every_step_seen() -> None:
    steps = seen(GPU, off=0.4)
    cost = fit_server_cost(steps, NOTHING, "test")
    for step in steps:
        likely_s = predicted_s(cost.step, step)
        assert likely_s * cost.low_factor <= step.seconds * (1 + 1e-9)
        assert step.seconds <= likely_s * cost.high_factor * (1 + 1e-9)


def test_a_perfect_fit_is_still_trusted_to_a_tenth_only() -> None:
    cost = fit_server_cost(seen(GPU), NOTHING, "test")
    assert (cost.low_factor, cost.high_factor) == pytest.approx((1 / 1.1, 1.1), rel=1e-2)


def test_steps_of_one_kind_alone_are_refused() -> None:
    with pytest.raises(SpecError, match="at least two kinds"):
        fit_step_cost([step for step in seen(GPU) if step.decoding])


def test_processor_time_is_told_apart_by_what_it_was_for() -> None:
    looks = [
        CpuSeen(
            requests=n, steps=tokens, chunks=n * tokens, cpu_s=0.02 + n * 0.004 + tokens * (8e-4 + n * 1e-4)
        )
        for n in (1, 2, 4, 8)
        for tokens in (1, 32, 64)
    ]
    found = fit_front_end(FrontEndSeen(request_s=0.007, cpu=tuple(looks)))
    assert (found.request_s, found.request_cpu_s) == pytest.approx((0.007, 0.004))
    assert (found.step_s, found.chunk_s) == pytest.approx((8e-4, 1e-4))


def test_without_processor_time_only_the_delay_of_a_request_is_known() -> None:
    found = fit_front_end(FrontEndSeen(request_s=0.007))
    assert (found.request_s, found.request_cpu_s, found.chunk_s) == (0.007, 0.0, 0.0)


def test_factors_that_do_not_enclose_one_are_refused() -> None:
    with pytest.raises(SpecError, match="enclose 1"):
        ServerCost(step=GPU, low_factor=1.1, high_factor=1.2)
