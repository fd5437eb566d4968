"""The textbook memory of inference and of training, in bytes, from a model's few numbers.

Every size is a count of bytes. GB is 10**9 of them, what data sheets and most textbooks count in; GiB is
2**30, what CUDA, nvidia-smi and vLLM count in. The words of each formula are in rules_of_thumb.RULES.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from estimator.spec import SpecError
from estimator.units import GB, ceil_div

ELEMENT_BITS: Final[Mapping[str, int]] = {
    "fp64": 64,
    "fp32": 32,
    "fp16": 16,
    "bf16": 16,
    "int8": 8,
    "int4": 4,
}

OVERHEAD_PERCENT: Final = 15
OVERHEAD_PERCENT_RANGE: Final = (10, 20)

OPTIMISER_STATES: Final[Mapping[str, int]] = {
    "sgd": 0,
    "sgd-momentum": 1,  # the running mean of the gradient
    "adamw": 2,  # the means of the gradient and of its square
}
"""Numbers an optimiser keeps for each parameter, beside the parameter itself."""

CUDA_KERNELS_BYTES: Final = 13 * GB // 10
"""What textbooks allow for loaded CUDA kernels: 1.3 GB, that is 1.21 GiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextbookModel:
    """The numbers textbook formulas use. `active_parameters`, of a token, is None for a dense model."""

    name: str
    parameters: int
    layers: int
    attention_heads: int
    kv_heads: int
    head_dim: int
    hidden_size: int
    active_parameters: int | None = None

    def __post_init__(self) -> None:
        for field in ("parameters", "layers", "attention_heads", "kv_heads", "head_dim", "hidden_size"):
            _require_count(field, getattr(self, field))
        _require_count("active_parameters", self.parameters_of_a_token)
        if self.parameters_of_a_token > self.parameters:
            raise SpecError(
                f"active_parameters must be at most the {self.parameters} parameters there are, "
                f"got {self.parameters_of_a_token}"
            )

    @property
    def parameters_of_a_token(self) -> int:
        """Rule 'moe': how many parameters one token is multiplied with."""
        return self.parameters if self.active_parameters is None else self.active_parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceMemory:
    """Rule 'total', in bytes, for a batch of requests of one length."""

    weights_bytes: int
    overhead_bytes: int
    kv_cache_bytes: int
    activation_bytes: int

    @property
    def fixed_bytes(self) -> int:
        """What does not grow with concurrency."""
        return self.weights_bytes + self.overhead_bytes

    @property
    def growing_bytes(self) -> int:
        """What grows with concurrency."""
        return self.kv_cache_bytes + self.activation_bytes

    @property
    def total_bytes(self) -> int:
        return self.fixed_bytes + self.growing_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingMemory:
    """Rule 'training', in bytes. Activations are in none of the four parts."""

    weights_bytes: int
    gradients_bytes: int
    optimiser_bytes: int
    cuda_kernels_bytes: int = CUDA_KERNELS_BYTES

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.gradients_bytes + self.optimiser_bytes + self.cuda_kernels_bytes


def weight_bytes(parameters: int, dtype: str) -> int:
    """Rule 'weights', bytes: 7 billion in fp16 are 14 GB (13.04 GiB). Raises SpecError on another dtype."""
    _require_count("parameters", parameters)
    return _bytes_of(parameters, dtype)


def quantisation_factor(dtype: str) -> Fraction:
    """Rule 'quantisation': how many times smaller than fp32; int4 is 8, fp64 is 1/2."""
    return Fraction(ELEMENT_BITS["fp32"], _bits(dtype))


def kv_cache_bytes(model: TextbookModel, *, tokens: int, batch: int = 1, dtype: str = "fp16") -> int:
    """Rule 'kv_cache' with attention heads, as textbooks write it, bytes: K and V of every head."""
    vectors = 2 * model.layers * model.attention_heads * _token_count(tokens, batch)
    return _bytes_of(vectors * model.head_dim, dtype)


def gqa_kv_cache_bytes(model: TextbookModel, *, tokens: int, batch: int = 1, dtype: str = "fp16") -> int:
    """Rule 'kv_cache' with the KV heads that grouped-query attention keeps, bytes."""
    vectors = 2 * model.layers * model.kv_heads * _token_count(tokens, batch)
    return _bytes_of(vectors * model.head_dim, dtype)


def activation_bytes(model: TextbookModel, *, tokens: int, batch: int = 1, dtype: str = "fp16") -> int:
    """Rule 'activation', bytes: one hidden state for each layer and token."""
    return _bytes_of(model.hidden_size * _token_count(tokens, batch) * model.layers, dtype)


def overhead_bytes(weights_bytes: int, percent: int = OVERHEAD_PERCENT) -> int:
    """Rule 'overhead', bytes: 15% of 72 GB are 10.8 GB (10.06 GiB). Raises SpecError outside 0 to 100."""
    if not 0 <= percent <= 100:
        raise SpecError(f"overhead_percent must be 0 to 100, got {percent}")
    return ceil_div(weights_bytes * percent, 100)


def padded_weights_bytes(weights_bytes: int, alpha: Fraction = Fraction(6, 5)) -> int:
    """Rule 'inference', bytes: weights and a share for everything else, 1.2 as most people take it."""
    return ceil_div(weights_bytes * alpha.numerator, alpha.denominator)


def inference_memory(
    model: TextbookModel,
    *,
    tokens: int,
    batch: int = 1,
    weight_dtype: str = "fp16",
    cache_dtype: str = "fp16",
    overhead_percent: int = OVERHEAD_PERCENT,
) -> InferenceMemory:
    """Rule 'total': `batch` requests of `tokens` each; KV cache and activations are in `cache_dtype`."""
    weights = weight_bytes(model.parameters, weight_dtype)
    return InferenceMemory(
        weights_bytes=weights,
        overhead_bytes=overhead_bytes(weights, overhead_percent),
        kv_cache_bytes=kv_cache_bytes(model, tokens=tokens, batch=batch, dtype=cache_dtype),
        activation_bytes=activation_bytes(model, tokens=tokens, batch=batch, dtype=cache_dtype),
    )


def training_memory(parameters: int, *, dtype: str = "fp32", optimiser: str = "adamw") -> TrainingMemory:
    """Rule 'training': gradients and states as wide as the weights. Raises SpecError on an unknown name."""
    if optimiser not in OPTIMISER_STATES:
        raise SpecError(f"optimiser must be one of {', '.join(OPTIMISER_STATES)}, got {optimiser}")
    weights = weight_bytes(parameters, dtype)
    return TrainingMemory(
        weights_bytes=weights,
        gradients_bytes=weights,
        optimiser_bytes=OPTIMISER_STATES[optimiser] * weights,
    )


def mixed_training_bytes(parameters: int) -> int:
    """Rule 'mixed_training': 16-bit weights and gradients, fp32 master copy and two Adam moments, bytes."""
    return parameters * (2 + 2 + 4 + 4 + 4)


def _token_count(tokens: int, batch: int) -> int:
    _require_count("tokens", tokens)
    _require_count("batch", batch)
    return tokens * batch


def _bytes_of(elements: int, dtype: str) -> int:
    return ceil_div(elements * _bits(dtype), 8)


def _bits(dtype: str) -> int:
    if dtype not in ELEMENT_BITS:
        raise SpecError(f"dtype must be one of {', '.join(ELEMENT_BITS)}, got {dtype}")
    return ELEMENT_BITS[dtype]


def _require_count(field: str, value: int) -> None:
    if value < 1:
        raise SpecError(f"{field} must be 1 or more, got {value}")
