"""Which users a stage holds, and which stage is in force when."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.capacity import KvPool, Prediction, predict
from estimator.spec import Lengths, Workload
from loadtest.conductor.plan import Held, held_at, plan_stages
from loadtest.run_folder import PlannedStage
from loadtest.scenario import Scenario, ScenarioError, Stage


def a_prediction(slots: int | None = None) -> Prediction:
    """511 usable blocks of 32; 256 + 256 tokens hold 16 at the longest: 31 guaranteed."""
    pool = KvPool(blocks=512, reserved_blocks=1, block_size_tokens=32, bytes_per_block=None, source="metrics")
    return predict(pool, Workload.constant(256, 256), max_model_len=2048, slots=slots)


def a_scenario(*stages: Stage) -> Scenario:
    lengths = Lengths.constant(256)
    return Scenario(name="s", input_tokens=lengths, output_tokens=lengths, stages=stages, settle_s=2.0)


def test_a_share_of_the_guarantee_is_rounded_down() -> None:
    planned = plan_stages(a_scenario(Stage(of="guaranteed", ratio=0.8, hold_s=9.0)), a_prediction())
    assert [stage.users for stage in planned] == [24]  # 0.8 x 31 = 24.8


def test_a_whole_share_is_not_lost_to_rounding() -> None:
    prediction = dataclasses.replace(a_prediction(), n_guaranteed=10)
    planned = plan_stages(a_scenario(Stage(of="guaranteed", ratio=1.1, hold_s=9.0)), prediction)
    assert planned[0].users == 11  # 1.1 x 10 is 11.000000000000002, and 0.7 x 10 would be 6.999...


def test_a_stage_holds_at_least_one_user() -> None:
    planned = plan_stages(a_scenario(Stage(of="guaranteed", ratio=0.001, hold_s=9.0)), a_prediction())
    assert planned[0].users == 1


def test_a_share_of_the_saturation_uses_the_mean_running() -> None:
    planned = plan_stages(a_scenario(Stage(of="saturation", ratio=1.5, hold_s=9.0)), a_prediction())
    assert planned[0].users == 61  # 1.5 x 40.92


def test_users_need_no_prediction_but_shares_do() -> None:
    assert plan_stages(a_scenario(Stage(users=7, hold_s=9.0)), None)[0].users == 7
    with pytest.raises(ScenarioError, match="give the stage a number of `users`"):
        plan_stages(a_scenario(Stage(of="guaranteed", ratio=1.0, hold_s=9.0)), None)


def test_a_share_of_unknown_slots_names_the_flag() -> None:
    with pytest.raises(ScenarioError, match="--max-num-seqs"):
        plan_stages(a_scenario(Stage(of="slots", ratio=1.0, hold_s=9.0)), a_prediction(slots=None))
    assert plan_stages(a_scenario(Stage(of="slots", ratio=0.5, hold_s=9.0)), a_prediction(128))[0].users == 64


def a_plan(*holds_s: float) -> tuple[PlannedStage, ...]:
    return plan_stages(a_scenario(*(Stage(users=i + 1, hold_s=h) for i, h in enumerate(holds_s))), None)


def looked_at(stages: Sequence[PlannedStage], moments_s: Sequence[float]) -> list[Held | None]:
    held, seen = None, []
    for moment_s in moments_s:
        seen.append(held := held_at(stages, held, moment_s))
        if held is None:
            break
    return seen


def test_the_plan_ends_after_its_last_stage() -> None:
    held = looked_at(a_plan(5.0, 7.0), (0.0, 4.99, 5.0, 11.99, 12.0))
    assert [one and one.index for one in held] == [0, 0, 1, 1, None]


def test_a_stage_that_began_late_is_still_held_to_its_end() -> None:
    held = looked_at(a_plan(5.0, 7.0), (0.0, 6.5, 12.5, 13.4, 13.5))
    assert [one and one.index for one in held] == [0, 1, 1, 1, None]


@given(
    holds_s=st.lists(st.floats(2.5, 1e3), min_size=1, max_size=8),
    waits_s=st.lists(st.floats(0.01, 3e3), min_size=30, max_size=60),
)
def test_every_stage_is_held_once_in_order_and_never_too_short(
    holds_s: list[float], waits_s: list[float]
) -> None:
    moments_s = [0.0, *accumulate(waits_s)]
    held = [one for one in looked_at(a_plan(*holds_s), moments_s) if one is not None]
    assert list(dict.fromkeys(one.index for one in held)) == list(range(held[-1].index + 1))
    starts_s = sorted({one.since_s for one in held})
    lasted_s = [end - start for start, end in pairwise(starts_s)]
    assert all(lasted >= hold for lasted, hold in zip(lasted_s, holds_s, strict=False))
