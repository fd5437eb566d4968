"""The same question for many servers at once: one row a combination, the roomiest first."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

from estimator.engine_spec import EngineSpec
from estimator.estimate import Estimate, estimate
from estimator.model import ModelSpec
from estimator.spec import GpuSpec, SpecError, Workload
from estimator.weights.count import Weights, weights_on_rank

Weigh = Callable[[EngineSpec, tuple[int, int] | None], tuple[Weights, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class WhatIf:
    """One combination: its answer, or the sentence that says why there is none."""

    gpu: GpuSpec
    engine: EngineSpec
    answer: Estimate | None
    refusal: str | None = None

    @property
    def gpus(self) -> int:
        return self.engine.tp * self.engine.pp

    @property
    def requests(self) -> int:
        """What memory and slots allow together, before the buffer; -1 where the server does not start."""
        if self.answer is None:
            return -1
        slots = self.answer.prediction.n_slots
        guaranteed = int(self.answer.n_guaranteed.likely)
        return guaranteed if slots is None else min(guaranteed, slots)


def what_if(
    model: ModelSpec,
    folder: Path | None,
    servers: Iterable[tuple[GpuSpec, EngineSpec]],
    workload: Workload | None,
) -> list[WhatIf]:
    """Rows by requests, most first; among equals the fewest GPUs. What cannot start comes last."""
    weigh = lru_cache(maxsize=None)(partial(_weights, model, folder))
    rows = [_row(model, weigh, gpu, engine, workload) for gpu, engine in servers]
    return sorted(rows, key=lambda row: (-row.requests, row.gpus, row.gpu.name))


def _weights(
    model: ModelSpec, folder: Path | None, sharding: EngineSpec, capability: tuple[int, int] | None
) -> tuple[Weights, ...]:
    return weights_on_rank(model, sharding, folder, compute_capability=capability)


def _sharding(engine: EngineSpec) -> EngineSpec:
    """The flags that weights depend on, and no others: rows that share them are weighed once."""
    return EngineSpec(
        tp=engine.tp,
        pp=engine.pp,
        enable_expert_parallel=engine.enable_expert_parallel,
        speculative=engine.speculative,
    )


def _row(
    model: ModelSpec, weigh: Weigh, gpu: GpuSpec, engine: EngineSpec, workload: Workload | None
) -> WhatIf:
    try:
        weights = weigh(_sharding(engine), gpu.compute_capability)
        answer = estimate(model, gpu, engine, weights, workload)
    except SpecError as refusal:
        return WhatIf(gpu=gpu, engine=engine, answer=None, refusal=str(refusal))
    return WhatIf(gpu=gpu, engine=engine, answer=answer)
