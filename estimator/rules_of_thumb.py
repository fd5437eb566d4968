"""The textbook formulas, exactly as people use them, and where each misleads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from estimator.spec import SpecError


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A formula in words, and one sentence on when its answer is wrong."""

    formula: str
    misleads: str


RULES: Final[Mapping[str, Rule]] = {
    "requests": Rule(
        formula="requests = free VRAM / VRAM of one request",
        misleads=(
            "One figure a request hides its length: memory is held in blocks that grow with every token, "
            "and the engine takes the cache at start-up, so nvidia-smi's free memory says nothing."
        ),
    ),
    "inference": Rule(
        formula="memory = weights x 1.2",
        misleads=(
            "The KV cache follows concurrency and context length, not the weights: a small model with long "
            "contexts needs many times its weights."
        ),
    ),
    "kv_token": Rule(
        formula="KV bytes a token = 2 x layers x hidden_size x bytes",
        misleads="It ignores grouped-query attention: too high by attention heads / KV heads, often 4 to 8.",
    ),
    "training": Rule(
        formula="memory = 16 bytes x parameters",
        misleads="It leaves out activations; sharding or offloading divides it; serving needs none of it.",
    ),
    "prefill": Rule(
        formula="prefill tokens/s = FLOPS / (2 x parameters)",
        misleads="Nothing reaches peak FLOPS, and attention adds work that grows with the context.",
    ),
}


def textbook_requests(free_vram_gib: float, per_request_mib: float) -> int:
    """floor(X x 1024 / Y), in exact fractions: 2 GiB and 8 MiB -> 256. Raises SpecError below zero."""
    return math.floor(
        _quantity("--free-vram-gib", free_vram_gib, least=0)
        * 1024
        / _quantity("--per-request-mib", per_request_mib)
    )


def inference_bytes(weights_bytes: int, alpha: float = 1.2) -> float:
    """Rule 'inference': weights and a share for everything else, bytes."""
    return weights_bytes * alpha


def kv_bytes_per_token(layers: int, hidden_size: int, element_bytes: int = 2) -> int:
    """Rule 'kv_token': K and V of full multi-head attention, bytes."""
    return 2 * layers * hidden_size * element_bytes


def training_bytes(parameters: int) -> int:
    """Rule 'training': 16-bit weights and gradients, float32 master copy and two Adam moments, bytes."""
    return parameters * (2 + 2 + 4 + 4 + 4)


def prefill_tokens_per_s(flops_per_s: float, parameters: int) -> float:
    """Rule 'prefill': two operations a parameter and token, tokens per second."""
    return flops_per_s / (2 * parameters)


def _quantity(flag: str, value: float, *, least: float | None = None) -> Fraction:
    if not math.isfinite(value) or (value <= 0 if least is None else value < least):
        raise SpecError(f"{flag} must be {'above' if least is None else 'at least'} 0, got {value}")
    return Fraction(str(value))
