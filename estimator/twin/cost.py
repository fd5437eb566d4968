"""What a simulated server's time is made of: the step of its engine and the work of its API front end.

The only clockwork of the twin; coefficients are data, from a data sheet (estimator/twin/prior.py) or measured
(estimator/twin/fit.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Final

from estimator.spec import SpecError

_STRICT: Final = {"extra": "forbid"}


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """Coefficients of the roofline; see `step_seconds`."""

    __pydantic_config__ = _STRICT  # a mistyped YAML key is refused by name

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
    attention_s_per_pair: float = 0.0
    """Arithmetic of a prompt token attending to one cached token: it makes long prompts cost their square."""

    def __post_init__(self) -> None:
        _refuse_odd(self, "step_cost")
        if self.fixed_s + self.weights_s == 0.0:
            raise SpecError("step_cost: fixed_s and weights_s are both 0; a step must take time")


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontEndCost:
    """The API server's own time. It is one process beside the engine: it delays tokens, not steps."""

    __pydantic_config__ = _STRICT

    request_s: float = 0.0
    """From the client's send until the engine has the request: parsing, tokenizing, passing it on."""
    request_cpu_s: float = 0.0
    """The part of it in which the front end can do nothing else."""
    step_s: float = 0.0
    """Waking up for the tokens of a step."""
    chunk_s: float = 0.0
    """Detokenizing and writing one streamed chunk."""

    def __post_init__(self) -> None:
        _refuse_odd(self, "front_end")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerCost:
    """All of a server's time, how far it may be off, and where it is from."""

    step: StepCost
    front_end: FrontEndCost = field(default_factory=FrontEndCost)
    low_factor: float = 1.0
    high_factor: float = 1.0
    """A step takes from low_factor to high_factor times what `step` says."""
    range_of_all: bool = False
    """The factors are of the front end's time as well: all is slower or quicker alike."""
    source: str = "given"
    """In words a report can print."""

    def __post_init__(self) -> None:
        if not 0.0 < self.low_factor <= 1.0 <= self.high_factor < float("inf"):
            raise SpecError(
                f"the factors of a cost enclose 1, got {self.low_factor:g} and {self.high_factor:g}"
            )


def step_seconds(
    cost: StepCost, prefill_tokens: int, decoding: int, context_tokens: int, attended_pairs: int = 0
) -> float:
    """Seconds of a step of `prefill_tokens` prompt tokens and `decoding` sequences of one token each.

    context_tokens: cached tokens that attention reads, over all sequences of the step; attended_pairs: prompt
    tokens times the tokens each attends to. Compute and memory traffic overlap, so the longer of the two
    counts (roofline).
    """
    compute_s = (
        prefill_tokens + decoding
    ) * cost.compute_s_per_token + attended_pairs * cost.attention_s_per_pair
    memory_s = cost.weights_s + context_tokens * cost.context_s_per_token
    return cost.fixed_s + max(compute_s, memory_s) + decoding * cost.sequence_s


def scaled(cost: StepCost, factor: float) -> StepCost:
    """The same machine, `factor` times as slow."""
    return StepCost(**{item.name: getattr(cost, item.name) * factor for item in fields(cost)})


def _refuse_odd(cost: StepCost | FrontEndCost, name: str) -> None:
    for item in fields(cost):
        value = getattr(cost, item.name)
        if not 0.0 <= value < float("inf"):
            raise SpecError(f"{name}.{item.name} must be 0 or more seconds, got {value}")
