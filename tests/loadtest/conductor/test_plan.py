"""Which users a stage holds, and which stage is in force when."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.capacity import KvPool, Prediction, predict
from estimator.spec import Lengths, Workload
from loadtest.conductor.plan import plan_stages, users_at
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


def test_the_plan_ends_after_its_last_stage() -> None:
    planned = plan_stages(a_scenario(Stage(users=2, hold_s=5.0), Stage(users=4, hold_s=7.0)), None)
    users = [
        target.users if (target := users_at(planned, t)) else None for t in (0.0, 4.99, 5.0, 11.99, 12.0)
    ]
    assert users == [2, 2, 4, 4, None]


@given(
    holds_s=st.lists(st.floats(2.5, 1e4), min_size=1, max_size=8),
    elapsed_s=st.floats(0, 1e6),
)
def test_the_stage_in_force_contains_the_moment(holds_s: list[float], elapsed_s: float) -> None:
    planned = plan_stages(a_scenario(*(Stage(users=i + 1, hold_s=h) for i, h in enumerate(holds_s))), None)
    target = users_at(planned, elapsed_s)
    if target is None:
        assert elapsed_s >= sum(holds_s) - 1e-6
    else:
        started_s = sum(holds_s[: target.stage.index])
        assert started_s - 1e-6 <= elapsed_s < started_s + target.stage.hold_s + 1e-6
