"""Model + GPU + flags + workload -> Estimate: the ledger, the pool and how many requests fit, with ranges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from estimator import vllm
from estimator.capacity import KvPool, Prediction, predict
from estimator.engine_spec import EngineSpec
from estimator.memory import NO_OVERHEADS, Headline, KvBudget, Overheads
from estimator.model import ModelSpec
from estimator.spec import EngineName, GpuSpec, Interval, SpecError, Workload
from estimator.sustained import held_histogram, n_sustained
from estimator.weights.count import Weights

VERSIONS: Final[Mapping[EngineName, str]] = {
    "vllm": f"vLLM {vllm.VERSION}",
    "lmdeploy": "LMDeploy 0.18",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The whole answer. `prediction` is of the likely pool; the Intervals carry the ledger's range."""

    model: ModelSpec
    gpu: GpuSpec
    engine: EngineSpec
    budget: KvBudget
    prediction: Prediction
    n_guaranteed: Interval
    n_sustained: Interval
    n_saturation: Interval

    @property
    def headline(self) -> Headline | None:
        """What vLLM itself would log; None for another engine."""
        return self.budget.headline

    @property
    def pool(self) -> KvPool:
        return self.prediction.pool


def estimate(
    model: ModelSpec,
    gpu: GpuSpec,
    engine: EngineSpec,
    weights: Sequence[Weights],
    workload: Workload | None = None,
    overheads: Overheads = NO_OVERHEADS,
) -> Estimate:
    """How many requests of `workload` fit; without one, requests that fill max_model_len.

    weights: one for each pipeline stage. Raises SpecError when the engine would not start or the workload
    exceeds max_model_len, UnsupportedModel when the model's cache is not known.
    """
    if engine.engine == "vllm":
        budget = vllm.kv_budget(model, gpu, engine, weights, overheads)
    else:
        from estimator.lmdeploy import budget as lmdeploy  # half of the start-up, and few ask for it

        budget = lmdeploy.kv_budget(model, gpu, engine, weights[0], overheads)
    pool = kv_pool(budget)
    max_model_len = budget.limits.max_model_len
    prediction = predict(
        pool,
        workload or longest_workload(max_model_len),
        max_model_len=max_model_len,
        slots=budget.limits.max_num_seqs,
    )
    held = prediction.held
    histogram = held_histogram(pool.tables, prediction.workload, pool.in_flight.steps)
    usable = [
        max(0, int(blocks) - budget.reserved_blocks)
        for blocks in (budget.blocks.low, budget.blocks.likely, budget.blocks.high)
    ]
    guaranteed = [held.guaranteed(blocks) for blocks in usable]
    sustained = {
        blocks: n_sustained(histogram, blocks - held.in_flight_blocks, least)
        for blocks, least in zip(usable, guaranteed, strict=True)
    }
    return Estimate(
        model=model,
        gpu=gpu,
        engine=engine,
        budget=budget,
        prediction=prediction,
        n_guaranteed=_interval(guaranteed),
        n_sustained=_interval([sustained[blocks] for blocks in usable]),
        n_saturation=_interval([blocks / held.mean_blocks for blocks in usable]),
    )


def _interval(ends: Sequence[float]) -> Interval:
    return Interval(low=ends[0], likely=ends[1], high=ends[2])


def kv_pool(budget: KvBudget) -> KvPool:
    """The likely pool of a budget, as the twin and the sign-off take it."""
    return KvPool(
        blocks=int(budget.blocks.likely),
        reserved_blocks=budget.reserved_blocks,
        block_size_tokens=budget.limits.block_size,
        bytes_per_block=budget.bytes_per_block,
        source=budget.source,
        groups=budget.groups,
        in_flight=budget.in_flight,
    )


def longest_workload(max_model_len: int) -> Workload:
    """Every request fills max_model_len: all prompt but the last token."""
    if max_model_len < 2:
        raise SpecError(f"--max-model-len must be at least 2, got {max_model_len}")
    return Workload.constant(max_model_len - 1, 1)
