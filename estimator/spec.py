"""The value types a prediction is made of: frozen, keyword-only, checked at birth.

Nothing here reads a file. `catalog` makes a GpuSpec, a scenario a Workload. What a model is made of is in
model.py, how a server is started in engine_spec.py.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Final, Literal

from estimator.errors import PlainError

EngineName = Literal["vllm", "lmdeploy"]
LengthKind = Literal["constant", "uniform", "normal", "lognormal", "empirical"]
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
class Bucket:
    """Token counts `min` to `max`, both included and equally likely, together as likely as `weight` says."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    min: int
    max: int
    weight: float

    def __post_init__(self) -> None:
        _require(1 <= self.min <= self.max, f"a bucket runs from min to max, got {self.min} to {self.max}")
        _require(0 < self.weight < math.inf, f"weight must be positive, got {self.weight}")


class _KeepsTable:
    """A slot that is no field: what follows from the fields is neither compared nor written down."""

    __slots__ = ("_kept",)
    _kept: _Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths(_KeepsTable):
    """A distribution of token counts. Which fields are set depends on `kind`.

    constant: tokens. uniform: min, max (both included). normal: mean, sd, min, max. lognormal: median, sigma
    (of the natural log), min, max; values outside [min, max] are clipped to the bound. empirical: `values`,
    each as likely as the others or as its weight says, or `buckets`.
    """

    # Read by the validation library at the edge: a mistyped YAML key is refused by name.
    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    kind: LengthKind = "constant"
    tokens: int | None = None
    min: int | None = None
    max: int | None = None
    mean: float | None = None
    sd: float | None = None
    median: float | None = None
    sigma: float | None = None
    values: tuple[int, ...] | None = None
    weights: tuple[float, ...] | None = None
    buckets: tuple[Bucket, ...] | None = None

    def __post_init__(self) -> None:
        needed = _FIELDS[self.kind]
        for name in ("tokens", "min", "max", "mean", "sd", "median", "sigma"):
            value = getattr(self, name)
            _require((value is not None) == (name in needed), f"lengths of kind {self.kind} take {needed}")
            _require(value is None or 0 < value < math.inf, f"{name} must be positive, got {value}")
        if self.min is not None and self.max is not None:
            _require(self.min <= self.max, f"min {self.min} is above max {self.max}")
        _require(self.sigma is None or self.sigma <= 20, f"sigma must be at most 20, got {self.sigma}")
        given = self.values is not None, self.buckets is not None
        _require(
            sum(given) == (self.kind == "empirical") and (self.weights is None or given[0]),
            f"lengths of kind {self.kind} take {needed}",
        )
        _ = self._table  # values that cannot be are refused at birth

    @property
    def _table(self) -> _Table | None:
        if self.kind != "empirical":
            return None
        try:
            return self._kept
        except AttributeError:  # the first look since birth, or since a copy was made
            table = _table_of(self.values, self.weights, self.buckets)
            object.__setattr__(self, "_kept", table)
            return table

    @classmethod
    def constant(cls, tokens: int) -> Lengths:
        return cls(kind="constant", tokens=tokens)

    @property
    def longest(self) -> int:
        """The largest count that can occur, in tokens."""
        if (table := self._table) is not None:
            return table.buckets[-1].max
        longest = self.tokens if self.kind == "constant" else self.max
        assert longest is not None
        return longest

    @property
    def shortest(self) -> int:
        """The smallest count that can occur, in tokens."""
        if (table := self._table) is not None:
            return table.buckets[0].min
        shortest = self.tokens if self.kind == "constant" else self.min
        assert shortest is not None
        return shortest

    def at(self, share: float) -> int:
        """Token count below which `share` (0..1) of all draws fall: the inverse distribution function.

        Drawing is `lengths.at(rng.random())`; averaging is a mean over evenly spaced shares.
        """
        if self.kind == "constant":
            return self.longest
        share = min(max(share, 0.0), 1.0)
        if (table := self._table) is not None:
            return table.at(share)
        if self.kind == "uniform":
            width = self.longest - self.shortest + 1
            return self.shortest + min(int(share * width), width - 1)
        drawn = round(self._bell(min(max(share, 1e-9), 1 - 1e-9)))
        return min(max(drawn, self.shortest), self.longest)

    def _bell(self, share: float) -> float:
        """`share` of a normal or lognormal distribution, its ends not yet cut off."""
        from statistics import NormalDist  # costs a third of the start-up, and few workloads need it

        deviations = NormalDist().inv_cdf(share)
        if self.kind == "normal":
            assert self.mean is not None
            assert self.sd is not None
            return self.mean + self.sd * deviations
        assert self.median is not None
        assert self.sigma is not None
        return self.median * math.exp(self.sigma * deviations)


_FIELDS: Final[Mapping[LengthKind, tuple[str, ...]]] = {
    "constant": ("tokens",),
    "uniform": ("min", "max"),
    "normal": ("mean", "sd", "min", "max"),
    "lognormal": ("median", "sigma", "min", "max"),
    "empirical": ("values", "weights or none", "or buckets"),
}


@dataclass(frozen=True, slots=True)
class _Table:
    """Buckets in order, and the share of all draws that fall into each or below."""

    edges: tuple[float, ...]
    buckets: tuple[Bucket, ...]

    def at(self, share: float) -> int:
        place = min(bisect_right(self.edges, share), len(self.buckets) - 1)
        bucket, below = self.buckets[place], self.edges[place - 1] if place else 0.0
        width = bucket.max - bucket.min + 1
        inside = (share - below) / (self.edges[place] - below)
        return bucket.min + min(int(inside * width), width - 1)


def _table_of(
    values: tuple[int, ...] | None, weights: tuple[float, ...] | None, buckets: tuple[Bucket, ...] | None
) -> _Table:
    if values is not None:
        each = weights if weights is not None else (1.0,) * len(values)
        _require(len(each) == len(values), f"{len(values)} values have {len(each)} weights")
        together: dict[int, float] = {}
        for value, weight in zip(values, each, strict=True):
            together[value] = together.get(value, 0.0) + weight
        buckets = tuple(Bucket(min=value, max=value, weight=weight) for value, weight in together.items())
    _require(bool(buckets), "empirical lengths need at least one value or bucket")
    assert buckets is not None
    ordered = tuple(sorted(buckets, key=lambda bucket: bucket.min))
    for one, other in pairwise(ordered):
        _require(one.max < other.min, f"buckets overlap at {other.min}")
    total = math.fsum(bucket.weight for bucket in ordered)
    edges = tuple(edge / total for edge in accumulate(bucket.weight for bucket in ordered))
    return _Table(edges=edges, buckets=ordered)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What requests look like: prompt and output lengths, drawn independently.

    Where they go together, as in a trace, `request_tokens_max` says how long the longest request really is;
    averages still take them for independent.
    """

    input_tokens: Lengths
    output_tokens: Lengths
    request_tokens_max: int | None = None

    @property
    def longest_tokens(self) -> int:
        longest = self.input_tokens.longest + self.output_tokens.longest
        return longest if self.request_tokens_max is None else min(longest, self.request_tokens_max)

    @classmethod
    def constant(cls, input_tokens: int, output_tokens: int) -> Workload:
        return cls(input_tokens=Lengths.constant(input_tokens), output_tokens=Lengths.constant(output_tokens))
