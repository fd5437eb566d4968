"""The KV cache LMDeploy leaves on one GPU, by whichever of its two engines serves the model."""

from __future__ import annotations

from dataclasses import replace

from estimator.engine_spec import EngineSpec
from estimator.lmdeploy import pytorch_engine, turbomind
from estimator.lmdeploy.defaults import CONTEXT, PRIORS
from estimator.memory import NO_OVERHEADS, KvBudget, Line, Overheads
from estimator.model import ModelSpec
from estimator.spec import GpuSpec
from estimator.weights.count import Weights


def kv_budget(
    model: ModelSpec,
    gpu: GpuSpec,
    engine: EngineSpec,
    weights: Weights,
    overheads: Overheads = NO_OVERHEADS,
) -> KvBudget:
    """Bytes and blocks of one rank; --backend decides the engine.

    overheads: of them LMDeploy knows one, what is in use outside the weights. Raises SpecError for a flag
    LMDeploy has no word for, or when nothing is left for the cache; UnsupportedModel for a model or a weight
    format that the engine does not load.
    """
    measured = overheads.non_torch_bytes
    context = None if measured is None else Line(name=CONTEXT, size_bytes=measured, source=overheads.source)
    serve = pytorch_engine.kv_budget if engine.backend == "pytorch" else turbomind.kv_budget
    budget = serve(model, gpu, engine, weights, context=context)
    return budget if context is not None else replace(budget, cautions=(*budget.cautions, PRIORS))
