"""Stages of a scenario + a prediction -> the users each stage holds, and which stage is held when; pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from estimator.capacity import Prediction
from loadtest.run_folder import PlannedStage
from loadtest.scenario import Scenario, ScenarioError, Stage
from loadtest.scenario.trace import looked_at


def plan_stages(scenario: Scenario, prediction: Prediction | None) -> tuple[PlannedStage, ...]:
    """Turns shares of the predicted limit into users, at least one a stage.

    Raises ScenarioError when a stage needs a figure that was not predicted.
    """
    users = [_users(stage, prediction) for stage in scenario.stages]
    stages = tuple(
        PlannedStage(
            index=index,
            label=_label(stage, _rate_per_s(scenario, stage)),
            users=users[index],
            hold_s=stage.hold_s,
            settle_s=scenario.settle_s,
            spawn_rate_per_s=scenario.spawn_rate_per_s,
            rate_per_s=_rate_per_s(scenario, stage),
        )
        for index, stage in enumerate(scenario.stages)
    )
    return _with_dips(stages, users_max=max(users, default=0)) if 0 in users else stages


def _with_dips(stages: tuple[PlannedStage, ...], users_max: int) -> tuple[PlannedStage, ...]:
    """All users leave a load at once, or Locust waits for each second's leavers in turn; they come back as
    ever, and the load is judged when the last of them has settled.
    """
    return tuple(
        replace(stage, settle_s=0.0, spawn_rate_per_s=float(users_max))
        if stage.is_dip
        else replace(stage, settle_s=(stage.settle_s or 0.0) + stage.users / stage.spawn_rate_per_s)
        for stage in stages
    )


def _rate_per_s(scenario: Scenario, stage: Stage) -> float | None:
    """Of an open loop; a recording has its own, on average."""
    if scenario.arrivals.kind != "trace" or scenario.trace is None:
        return stage.rate_per_s
    trace = scenario.trace
    seen = trace.seen or looked_at(trace).seen
    assert seen is not None
    return seen.rows * trace.speed / seen.span_s if seen.span_s else float(seen.rows)


def _label(stage: Stage, rate_per_s: float | None) -> str:
    if stage.is_dip:
        return "dip: nothing is asked"
    users = f"{stage.ratio:.0%} of {stage.of}" if stage.of else f"{stage.users} users"
    return users if rate_per_s is None else f"{rate_per_s:.4g} requests/s, at most {users}"


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
class Held:
    """The stage in force, and when it began: seconds after the load's start."""

    index: int
    since_s: float


def held_at(stages: Sequence[PlannedStage], held: Held | None, elapsed_s: float) -> Held | None:
    """What is held `elapsed_s` after the start, where `held` was until now; None when the plan is over.

    A stage lasts from when it really began, and none is skipped, however late one looks: Locust looks once a
    second, and not at all while it starts users.
    """
    if held is None:
        return Held(index=0, since_s=elapsed_s)
    if elapsed_s - held.since_s < stages[held.index].hold_s:
        return held
    following = held.index + 1
    return Held(index=following, since_s=elapsed_s) if following < len(stages) else None
