"""The value types a prediction is made of: frozen, keyword-only, checked at birth.

Nothing here reads a file. `catalog` makes a GpuSpec, a scenario a Workload. What a model is made of is in
model.py, how a server is started in engine_spec.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from estimator.errors import PlainError

EngineName = Literal["vllm", "lmdeploy"]
LengthKind = Literal["constant", "uniform", "lognormal"]
Vendor = Literal["nvidia", "amd", "huawei"]


class SpecError(PlainError, ValueError):
    """A value that cannot be: the message is one sentence that names the field and the fix."""


class UnsupportedModel(SpecError):  # noqa: N818  (reads as the answer a person gets)
    """An architecture whose cache layout we do not know exactly, so no number is given."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise SpecError(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A quantity known only to a range: low <= likely <= high, all in the unit of the name it is bound to."""

    low: float
    likely: float
    high: float

    def __post_init__(self) -> None:
        _require(self.low <= self.likely <= self.high, f"interval is not ordered: {self}")

    @classmethod
    def exact(cls, value: float) -> Interval:
        return cls(low=value, likely=value, high=value)

    @property
    def is_exact(self) -> bool:
        return self.low == self.high


def heads_on_rank(kv_heads: int, tp: int) -> int:
    """KV heads one tensor-parallel rank keeps: divided while they last, then replicated, never below one."""
    if tp > kv_heads and tp % kv_heads != 0:
        raise SpecError(f"--tp {tp} is not a multiple of the model's {kv_heads} KV heads; vLLM refuses it")
    if tp <= kv_heads and kv_heads % tp != 0:
        raise SpecError(f"--tp {tp} does not divide the model's {kv_heads} KV heads; choose a divisor")
    return max(1, kv_heads // tp)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSpec:
    """One GPU. `memory_total_bytes` is what CUDA (or its like) reports, less than the data sheet's figure.

    `dense_bf16_flops_per_s` is the FP16 figure where the GPU has no bf16. `compute_capability` is NVIDIA's
    and None elsewhere: only NVIDIA's kernels are chosen by it.
    """

    name: str
    memory_total_bytes: int
    memory_bandwidth_bytes_per_s: float
    dense_bf16_flops_per_s: float
    compute_capability: tuple[int, int] | None
    vendor: Vendor = "nvidia"

    def __post_init__(self) -> None:
        _require(self.memory_total_bytes > 0, f"{self.name}: memory_total_bytes must be positive")
        _require(self.memory_bandwidth_bytes_per_s > 0, f"{self.name}: memory bandwidth must be positive")
        _require(self.dense_bf16_flops_per_s > 0, f"{self.name}: dense_bf16_flops_per_s must be positive")
        _require(
            (self.compute_capability is not None) == (self.vendor == "nvidia"),
            f"{self.name}: compute_capability is NVIDIA's; give it with vendor nvidia and with no other",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """A distribution of token counts. Which fields are set depends on `kind`.

    constant: tokens. uniform: min, max (both included). lognormal: median, sigma (of the natural
    log), min, max; values outside [min, max] are clipped to the bound.
    """

    # Read by the validation library at the edge: a mistyped YAML key is refused by name.
    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    kind: LengthKind = "constant"
    tokens: int | None = None
    min: int | None = None
    max: int | None = None
    median: float | None = None
    sigma: float | None = None

    def __post_init__(self) -> None:
        needed = {
            "constant": ("tokens",),
            "uniform": ("min", "max"),
            "lognormal": ("median", "sigma", "min", "max"),
        }[self.kind]
        for field in ("tokens", "min", "max", "median", "sigma"):
            value = getattr(self, field)
            _require((value is not None) == (field in needed), f"lengths of kind {self.kind} take {needed}")
            _require(value is None or value > 0, f"{field} must be positive, got {value}")
        if self.min is not None and self.max is not None:
            _require(self.min <= self.max, f"min {self.min} is above max {self.max}")

    @classmethod
    def constant(cls, tokens: int) -> Lengths:
        return cls(kind="constant", tokens=tokens)

    @property
    def longest(self) -> int:
        """The largest count that can occur, in tokens."""
        longest = self.tokens if self.kind == "constant" else self.max
        assert longest is not None
        return longest

    @property
    def shortest(self) -> int:
        """The smallest count that can occur, in tokens."""
        shortest = self.tokens if self.kind == "constant" else self.min
        assert shortest is not None
        return shortest

    def at(self, share: float) -> int:
        """Token count below which `share` (0..1) of all draws fall: the inverse distribution function.

        Drawing is `lengths.at(rng.random())`; averaging is a mean over evenly spaced shares.
        """
        share = min(max(share, 0.0), 1.0)
        if self.kind == "constant":
            return self.longest
        if self.kind == "uniform":
            width = self.longest - self.shortest + 1
            return self.shortest + min(int(share * width), width - 1)
        assert self.median is not None
        assert self.sigma is not None
        from statistics import NormalDist  # costs a third of the start-up, and few workloads need it

        inner = min(max(share, 1e-9), 1 - 1e-9)
        drawn = round(self.median * math.exp(self.sigma * NormalDist().inv_cdf(inner)))
        return min(max(drawn, self.shortest), self.longest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What requests look like: prompt and output lengths, drawn independently."""

    input_tokens: Lengths
    output_tokens: Lengths

    @property
    def longest_tokens(self) -> int:
        return self.input_tokens.longest + self.output_tokens.longest

    @classmethod
    def constant(cls, input_tokens: int, output_tokens: int) -> Workload:
        return cls(input_tokens=Lengths.constant(input_tokens), output_tokens=Lengths.constant(output_tokens))
