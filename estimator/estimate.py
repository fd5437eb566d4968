"""Model + GPU + flags + workload -> Estimate: the ledger, the pool and how many requests fit, with ranges."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from estimator import lmdeploy, vllm
from estimator.capacity import Headline, KvPool, Prediction, predict, vllm_headline
from estimator.memory import KvBudget
from estimator.spec import EngineName, EngineSpec, GpuSpec, Interval, ModelSpec, SpecError, Workload
from estimator.weights import Weights

KvBudgetOf = Callable[[ModelSpec, GpuSpec, EngineSpec, Weights], KvBudget]
ENGINES: Final[Mapping[EngineName, KvBudgetOf]] = {
    "vllm": vllm.kv_budget,
    "lmdeploy": lmdeploy.kv_budget,
}
VERSIONS: Final[Mapping[EngineName, str]] = {
    "vllm": f"vLLM {vllm.VERSION}",
    "lmdeploy": f"LMDeploy {lmdeploy.VERSION}",
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
    n_saturation: Interval
    headline: Headline | None
    """What vLLM itself would log; None for another engine."""

    @property
    def pool(self) -> KvPool:
        return self.prediction.pool


def estimate(
    model: ModelSpec, gpu: GpuSpec, engine: EngineSpec, weights: Weights, workload: Workload | None = None
) -> Estimate:
    """How many requests of `workload` fit; without one, requests that fill max_model_len.

    Raises SpecError when the engine would not start or the workload exceeds max_model_len, UnsupportedModel
    when the model's cache is not known.
    """
    budget = ENGINES[engine.engine](model, gpu, engine, weights)
    pool = kv_pool(budget)
    max_model_len = budget.limits.max_model_len
    prediction = predict(
        pool,
        workload or longest_workload(max_model_len),
        max_model_len=max_model_len,
        slots=budget.limits.max_num_seqs,
    )
    usable = [
        max(0, int(blocks) - budget.reserved_blocks)
        for blocks in (budget.blocks.low, budget.blocks.likely, budget.blocks.high)
    ]
    guaranteed = [blocks // prediction.held.longest_blocks for blocks in usable]
    saturation = [blocks / prediction.held.mean_blocks for blocks in usable]
    return Estimate(
        model=model,
        gpu=gpu,
        engine=engine,
        budget=budget,
        prediction=prediction,
        n_guaranteed=Interval(low=guaranteed[0], likely=guaranteed[1], high=guaranteed[2]),
        n_saturation=Interval(low=saturation[0], likely=saturation[1], high=saturation[2]),
        headline=vllm_headline(pool, max_model_len) if engine.engine == "vllm" else None,
    )


def kv_pool(budget: KvBudget) -> KvPool:
    """The likely pool of a budget, as the twin and the sign-off take it."""
    return KvPool(
        blocks=int(budget.blocks.likely),
        reserved_blocks=budget.reserved_blocks,
        block_size_tokens=budget.limits.block_size,
        bytes_per_block=budget.bytes_per_block,
        source=budget.source,
    )


def longest_workload(max_model_len: int) -> Workload:
    """Every request fills max_model_len: all prompt but the last token."""
    if max_model_len < 2:
        raise SpecError(f"--max-model-len must be at least 2, got {max_model_len}")
    return Workload.constant(max_model_len - 1, 1)
