"""What a running request held, predicted and seen. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from estimator.capacity import Prediction
from loadtest.reporter.observation import Observation, StageObservation


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldCheck:
    """Blocks a running request held on average, predicted and seen, in the fullest stage that held."""

    users: int
    predicted_blocks: float
    observed_blocks: float
    predicted_running: float
    observed_running: float
    prefix_hit_ratio: float | None = None
    """Share of the prompt tokens looked up in that stage that the prefix cache had."""


def held_check(prediction: Prediction | None, observation: Observation) -> HeldCheck | None:
    """usage x usable blocks / running, where the pool was fullest and nothing was preempted: one that is
    begins again and holds less. None without the figures for it.
    """
    if prediction is None:
        return None
    known = [s for s in observation.stages if s.running_mean and s.kv_usage_mean_ratio is not None]
    if not known:
        return None
    calm = [stage for stage in known if not stage.preemptions] or known
    fullest: StageObservation = max(calm, key=lambda stage: (stage.kv_usage_mean_ratio or 0.0, stage.users))
    assert fullest.running_mean is not None
    assert fullest.kv_usage_mean_ratio is not None
    return HeldCheck(
        users=fullest.users,
        predicted_blocks=prediction.held.mean_blocks,
        observed_blocks=fullest.kv_usage_mean_ratio
        * prediction.pool.usable_blocks_of_all
        / fullest.running_mean,
        predicted_running=min(prediction.n_saturation, float(fullest.users)),
        observed_running=fullest.running_mean,
        prefix_hit_ratio=fullest.prefix_hit_ratio,
    )


def held_sentences(prediction: Prediction | None, observation: Observation) -> list[str]:
    """The check in words; none without the figures for it."""
    check = held_check(prediction, observation)
    if check is None:
        return []
    return [
        f"At {check.users} users {check.observed_running:.1f} requests ran on average, where "
        f"{check.predicted_running:.1f} were predicted.",
        f"A running request held {check.observed_blocks:.1f} blocks on average; the prediction for these "
        f"lengths is {check.predicted_blocks:.1f}.",
    ]
