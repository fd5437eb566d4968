"""What one engine step costs in seconds. The only clockwork of the twin: coefficients are data."""

from __future__ import annotations

from dataclasses import dataclass, fields

from estimator.spec import SpecError


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """Coefficients of the roofline; see `step_seconds`."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  (a mistyped YAML key is refused by name)

    fixed_s: float
    """Launch, scheduling and sampling: paid by every step whatever it holds."""
    compute_s_per_token: float
    """Arithmetic of one token: about 2 x parameters / reached FLOP/s."""
    weights_s: float
    """Reading the weights once: bytes of weights / memory bandwidth."""
    context_s_per_token: float
    """Reading the KV cache of one token: bytes per token / memory bandwidth."""
    sequence_s: float
    """Host work for each sequence that decodes: sampling, detokenising, sending."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0.0 <= value < float("inf"):
                raise SpecError(f"step_cost.{field.name} must be 0 or more seconds, got {value}")
        if self.fixed_s + self.weights_s == 0.0:
            raise SpecError("step_cost: fixed_s and weights_s are both 0; a step must take time")


def step_seconds(cost: StepCost, prefill_tokens: int, decoding: int, context_tokens: int) -> float:
    """Seconds of a step of `prefill_tokens` prompt tokens and `decoding` sequences of one token each.

    context_tokens: cached tokens that attention reads, over all sequences of the step. Compute and memory
    traffic overlap, so the longer of the two counts (roofline).
    """
    compute_s = (prefill_tokens + decoding) * cost.compute_s_per_token
    memory_s = cost.weights_s + context_tokens * cost.context_s_per_token
    return cost.fixed_s + max(compute_s, memory_s) + decoding * cost.sequence_s
