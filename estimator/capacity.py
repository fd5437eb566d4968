"""KvPool + Workload -> Prediction: how many requests fit, by definitions that are never mixed.

N_guaranteed  every request at its worst moment still fits: no preemption can occur.
N_sustained   in a closed loop, the chance of any preemption in an hour is at most 1% (sustained.py).
N_saturation  mean running when the pool is full: usable blocks / mean held. Above it requests only queue.
N_slots       max_num_seqs: what the scheduler admits however much memory is left.
N_kv          the one memory allows with a promise: N_guaranteed.
The 20% buffer is not applied here; it lives in loadtest/reporter/buffer.py alone.

Several data-parallel engines have a pool and slots each. A request stays with its engine, and requests are
taken to be spread evenly, as vLLM does by what runs and waits: the smallest engine decides N_guaranteed and
N_sustained, all blocks together N_saturation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from estimator.held import TWO_STEPS, Held, InFlight, held_over_life
from estimator.kv_group import KvGroup, full_group
from estimator.spec import SpecError, Workload
from estimator.sustained import held_histogram, n_sustained
from estimator.units import ceil_div

if TYPE_CHECKING:  # a load starts without what memory is made of
    from estimator.memory import Headline

PoolSource = Literal["metrics", "config", "flags"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KvPool:
    """The paged KV cache of one engine: `blocks` as the engine reports it, reserved ones included.

    `source` says where the block count came from: the server's /metrics, the model's config and the GPU,
    or a flag (--num-gpu-blocks-override).
    """

    blocks: int
    reserved_blocks: int
    block_size_tokens: int
    bytes_per_block: tuple[int, ...] | None
    """Bytes of one block on one GPU of each pipeline stage."""
    source: PoolSource
    groups: tuple[KvGroup, ...] = ()
    """Empty: one group in which every layer keeps every token."""
    in_flight: InFlight = TWO_STEPS
    """What running steps keep from being freed; of no matter where every token is kept."""
    engine_blocks: tuple[int, ...] = ()
    """Of several data-parallel engines: the blocks of each; `blocks` is the smallest. Empty: one engine."""

    def __post_init__(self) -> None:
        if self.engine_blocks and min(self.engine_blocks) != self.blocks:
            raise SpecError(
                f"the smallest of the engines has {min(self.engine_blocks)} blocks, not {self.blocks}"
            )
        if self.block_size_tokens < 1:
            raise SpecError(f"block_size must be at least 1, got {self.block_size_tokens}")
        if self.blocks <= self.reserved_blocks:
            raise SpecError(
                f"the KV cache has {self.blocks} blocks and {self.reserved_blocks} of them are reserved: "
                "no request fits; use a larger GPU, more of it (--gpu-memory-utilization) or a smaller model"
            )

    @property
    def usable_blocks(self) -> int:
        """Of one engine: the smallest."""
        return self.blocks - self.reserved_blocks

    @property
    def engines(self) -> int:
        return len(self.engine_blocks) or 1

    @property
    def usable_blocks_of_all(self) -> int:
        return sum(self.engine_blocks or (self.blocks,)) - self.engines * self.reserved_blocks

    @property
    def tables(self) -> tuple[KvGroup, ...]:
        """The groups a request draws blocks for: at least one."""
        return self.groups or (full_group(self.block_size_tokens),)

    def held_blocks(self, tokens: int) -> int:
        """Blocks one request holds with `tokens` computed and no step of a prompt in flight."""
        return sum(group.held(tokens) for group in self.tables)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """How many requests of `workload` fit in `pool`; counts are concurrent requests."""

    pool: KvPool
    workload: Workload
    held: Held
    max_model_len: int
    n_guaranteed: int
    n_saturation: float
    n_slots: int | None
    n_sustained: int | None = None
    """None in a run that was recorded before this was computed."""

    @property
    def n_kv(self) -> int:
        return self.n_guaranteed

    @property
    def limited_by(self) -> Literal["kv", "slots"]:
        return "slots" if self.n_slots is not None and self.n_slots < self.n_guaranteed else "kv"


def predict(pool: KvPool, workload: Workload, *, max_model_len: int, slots: int | None) -> Prediction:
    """`slots`: of one engine. Raises SpecError when the workload's longest request exceeds max_model_len."""
    if workload.longest_tokens > max_model_len:
        raise SpecError(
            f"a request of {workload.input_tokens.longest} input + {workload.output_tokens.longest} output "
            f"tokens exceeds max_model_len {max_model_len}; shorten it or raise --max-model-len"
        )
    held = held_over_life(pool.tables, workload, pool.in_flight)
    guaranteed, engines = held.guaranteed(pool.usable_blocks), pool.engines
    histogram = held_histogram(pool.tables, workload, pool.in_flight.steps)
    free_blocks = pool.usable_blocks - held.in_flight_blocks
    return Prediction(
        pool=pool,
        workload=workload,
        held=held,
        max_model_len=max_model_len,
        n_guaranteed=engines * guaranteed,
        n_sustained=engines * n_sustained(histogram, free_blocks, guaranteed, engines),
        n_saturation=pool.usable_blocks_of_all / held.mean_blocks,
        n_slots=None if slots is None else engines * slots,
    )


def vllm_headline(pool: KvPool, max_model_len: int) -> Headline:
    """Source: vLLM 0.32 kv_cache_utils.get_max_concurrency_for_kv_cache_config, one full-attention group."""
    from estimator.memory import Headline

    concurrency = pool.blocks / ceil_div(max_model_len, pool.block_size_tokens)
    return Headline(cache_tokens=int(concurrency * max_model_len), max_concurrency=concurrency)
