"""How long a step of a simulated engine takes, for the clocks that drive one."""

from __future__ import annotations

from estimator.twin.cost import StepCost, step_seconds
from estimator.twin.request import Step


def step_duration_s(cost: StepCost, step: Step) -> float:
    """0 for a step that nobody is in, as when all wait for their last token: it never reaches the GPU."""
    if not step.prefill_tokens + step.decoding:
        return 0.0
    return step_seconds(cost, step.prefill_tokens, step.decoding, step.context_tokens, step.attended_pairs)
