"""The KV cache LMDeploy leaves on one GPU, by whichever of its two engines serves the model."""

from __future__ import annotations

from estimator.engine_spec import EngineSpec
from estimator.lmdeploy import pytorch_engine, turbomind
from estimator.memory import KvBudget
from estimator.model import ModelSpec
from estimator.spec import GpuSpec
from estimator.weights.count import Weights


def kv_budget(model: ModelSpec, gpu: GpuSpec, engine: EngineSpec, weights: Weights) -> KvBudget:
    """Bytes and blocks of one rank; --backend decides the engine.

    Raises SpecError for a flag LMDeploy has no word for, or when nothing is left for the cache;
    UnsupportedModel for a model or a weight format that the engine does not load.
    """
    if engine.backend == "pytorch":
        return pytorch_engine.kv_budget(model, gpu, engine, weights)
    return turbomind.kv_budget(model, gpu, engine, weights)
