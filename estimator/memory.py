"""The VRAM ledger: what one GPU's memory goes to, line by line, until the KV cache has its share.

Every line is an Interval with the reason beside it, and the lines sum to the total exactly: what is not
known is a wider interval, never a hidden remainder.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from estimator.held import TWO_STEPS, InFlight
from estimator.kv_group import KvGroup
from estimator.spec import Interval, SpecError

PoolSource = Literal["config", "flags"]
KV_CACHE: Final = "KV cache"
LEFT_FREE: Final = "left free"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One use of the memory of one GPU, in bytes, and where the figure comes from."""

    name: str
    size_bytes: Interval
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """All uses of one GPU's memory. Invariant: the likely sizes sum to total_bytes, to the byte."""

    total_bytes: int
    lines: tuple[Line, ...]

    def __post_init__(self) -> None:
        accounted_bytes = sum(line.size_bytes.likely for line in self.lines)
        if accounted_bytes != self.total_bytes:
            raise SpecError(f"the ledger sums to {accounted_bytes}, not to the total {self.total_bytes}")

    def line(self, name: str) -> Line:
        return next(line for line in self.lines if line.name == name)

    @property
    def kv_bytes(self) -> Interval:
        return self.line(KV_CACHE).size_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Headline:
    """vLLM's own log line: 'GPU KV cache size: T tokens, Maximum concurrency for L tokens: Cx'.

    It counts every request at max_model_len and includes the null block, so C is one block too high.
    """

    cache_tokens: int
    max_concurrency: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """An EngineSpec with the engine's own defaults filled in."""

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int
    memory_share: float
    """vLLM: of the total (--gpu-memory-utilization). LMDeploy: of what is free after the weights."""
    in_flight_tokens: int = 0
    """Tokens that running steps may hold beyond a sliding window (vLLM's max_in_flight_tokens)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KvBudget:
    """How many blocks one engine's GPUs give, with the ledger that says why."""

    limits: EngineLimits
    ledgers: tuple[Ledger, ...]
    """One for each pipeline stage."""
    blocks: Interval
    """Whole blocks, reserved ones included: the least over the stages."""
    reserved_blocks: int
    bytes_per_block: tuple[int, ...]
    """Bytes one block id costs on one rank, for each pipeline stage."""
    groups: tuple[KvGroup, ...]
    stored_as: str
    """How K and V are stored, in words: "bfloat16", "fp8", "int8 and scales"."""
    source: PoolSource
    cautions: tuple[str, ...]
    in_flight: InFlight = TWO_STEPS
    headline: Headline | None = None
    """What vLLM itself would log of the likely pool; None for another engine."""

    @property
    def ledger(self) -> Ledger:
        """Of the stage that gives the fewest blocks."""
        stages = zip(self.ledgers, self.bytes_per_block, strict=True)
        return min(stages, key=lambda stage: stage[0].kv_bytes.likely // stage[1])[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Overheads:
    """What start-up takes beside the weights, bytes; None: the prior. Calibration knows better."""

    activation_bytes: Interval | None = None
    cuda_graph_bytes: Interval | None = None
    non_torch_bytes: Interval | None = None
    source: str = "prior"


NO_OVERHEADS: Final = Overheads()


def whole_bytes(low: float, likely: float, high: float) -> Interval:
    """An Interval of whole bytes, so that ledgers add up without rounding."""
    return Interval(low=round(low), likely=round(likely), high=round(high))


def settle(total_bytes: int, claims: Iterable[Line], rest_name: str, rest_source: str) -> Ledger:
    """The ledger whose last line takes what the claims leave; its range mirrors theirs.

    The rest may be negative: the caller says what that means.
    """
    lines = tuple(claims)
    rest = Interval(
        low=total_bytes - sum(line.size_bytes.high for line in lines),
        likely=total_bytes - sum(line.size_bytes.likely for line in lines),
        high=total_bytes - sum(line.size_bytes.low for line in lines),
    )
    rest_line = Line(name=rest_name, size_bytes=rest, source=rest_source)
    return Ledger(total_bytes=total_bytes, lines=(*lines, rest_line))
