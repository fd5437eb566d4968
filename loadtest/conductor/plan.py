"""Stages of a scenario + a prediction -> the users each stage holds, and users_at(elapsed); pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from estimator.capacity import Prediction
from loadtest.run_folder import PlannedStage
from loadtest.scenario import Scenario, ScenarioError, Stage


def plan_stages(scenario: Scenario, prediction: Prediction | None) -> tuple[PlannedStage, ...]:
    """Turns shares of the predicted limit into users, at least one a stage.

    Raises ScenarioError when a stage needs a figure that was not predicted.
    """
    return tuple(
        PlannedStage(
            index=index,
            label=f"{stage.ratio:.0%} of {stage.of}" if stage.of else f"{stage.users} users",
            users=_users(stage, prediction),
            hold_s=stage.hold_s,
            settle_s=scenario.settle_s,
            spawn_rate_per_s=scenario.spawn_rate_per_s,
        )
        for index, stage in enumerate(scenario.stages)
    )


def _users(stage: Stage, prediction: Prediction | None) -> int:
    if stage.users is not None:
        return stage.users
    assert stage.ratio is not None
    if prediction is None:
        raise ScenarioError(
            f"a stage asks for a share of the {stage.of} limit, but the server's /metrics shows no KV cache "
            "of one group; name --model-config and --gpu, or give the stage a number of `users`"
        )
    limit = {
        "guaranteed": float(prediction.n_guaranteed),
        "saturation": prediction.n_saturation,
        "slots": None if prediction.n_slots is None else float(prediction.n_slots),
    }[str(stage.of)]
    if limit is None:
        raise ScenarioError(
            "a stage asks for a share of the slots, but max_num_seqs is not known: give --max-num-seqs"
        )
    return max(1, math.floor(stage.ratio * limit + 1e-9))


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What the load should be at one moment."""

    stage: PlannedStage
    users: int
    spawn_rate_per_s: float


def users_at(stages: Sequence[PlannedStage], elapsed_s: float) -> Target | None:
    """The stage in force `elapsed_s` after the start; None when the plan is over."""
    ends_s = 0.0
    for stage in stages:
        ends_s += stage.hold_s
        if elapsed_s < ends_s:
            return Target(stage=stage, users=stage.users, spawn_rate_per_s=stage.spawn_rate_per_s)
    return None
