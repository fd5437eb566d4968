"""Why prediction and observation differ, in figures that can be checked. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from estimator.capacity import Prediction
from loadtest.reporter.observation import Observation, StageObservation
from loadtest.reporter.verdict import Verdict

CLOSE_RATIO = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldCheck:
    """Blocks a running request held on average, predicted and seen, in the fullest stage."""

    users: int
    predicted_blocks: float
    observed_blocks: float
    predicted_running: float
    observed_running: float


def held_check(prediction: Prediction | None, observation: Observation) -> HeldCheck | None:
    """usage x usable blocks / running, where the pool was fullest. None without the figures for it."""
    if prediction is None:
        return None
    known = [s for s in observation.stages if s.running_mean and s.kv_usage_mean_ratio is not None]
    if not known:
        return None
    fullest: StageObservation = max(known, key=lambda stage: (stage.kv_usage_mean_ratio or 0.0, stage.users))
    assert fullest.running_mean is not None
    assert fullest.kv_usage_mean_ratio is not None
    return HeldCheck(
        users=fullest.users,
        predicted_blocks=prediction.held.mean_blocks,
        observed_blocks=fullest.kv_usage_mean_ratio * prediction.pool.usable_blocks / fullest.running_mean,
        predicted_running=min(prediction.n_saturation, float(fullest.users)),
        observed_running=fullest.running_mean,
    )


def explain_gap(verdict: Verdict) -> str:
    """One sentence; empty where there is nothing to explain."""
    gap, observation = verdict.gap_ratio, verdict.observation
    if gap is None or verdict.prediction is None:
        return ""
    if verdict.is_lower_bound:
        return "the highest stage held; a higher one would say more"
    if gap > CLOSE_RATIO:
        return "requests rarely reach their longest together, so more than the guarantee held here"
    if gap >= -CLOSE_RATIO:
        return ""
    tried = [stage.users for stage in observation.stages if stage.users > observation.n_max]
    if tried and min(tried) > verdict.prediction.n_kv:
        return f"no stage between {observation.n_max} and {min(tried)} users was tried"
    return {
        "slo": "a latency limit was reached before the memory was full",
        "slots": "max_num_seqs was reached before the memory was full",
        "prefill": "prompts waited for compute, not for memory",
        "admission": "the server refused requests before its memory was full",
        "network": "requests waited in front of the engine",
        "client": "the load generator was the bottleneck",
    }.get(observation.wall.name, "the pool filled earlier than predicted: compare held blocks in the report")
