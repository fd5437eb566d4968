"""What a step should cost, from data sheets alone: model, GPU and flags -> StepCost and how wrong it may be.

A roofline with the shares of peak that published serving benchmarks reach; every figure is a prior until
`ullage calibrate` measures the server. Sources: weights are read once a step, a token costs two operations a
parameter (Kaplan et al. 2020, 2.1), the KV cache is read once a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from estimator.engine_spec import EngineSpec
from estimator.memory import KvBudget
from estimator.model import ModelSpec
from estimator.spec import GpuSpec
from estimator.twin.cost import StepCost

BANDWIDTH_SHARE: Final = 0.75
"""Of the data sheet's memory bandwidth, in large copies and GEMVs."""
FLOPS_SHARE: Final = 0.5
"""Of the data sheet's dense bf16 FLOP/s, in prefill."""
FIXED_S: Final = 0.002
"""Scheduling, launch and sampling of one step."""
ALL_REDUCE_S: Final = 12e-6
"""One all-reduce of a small tensor over NVLink; two a layer."""
SEQUENCE_S: Final = 2e-5
"""Detokenising and sending one token, in the API server."""
RANGE: Final = (0.6, 2.0)
"""A step takes from 0.6 to 2 times what this says, by judgement of public benchmarks; not measured here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PriorCost:
    """The likely cost of a step, and the factors of its range."""

    likely: StepCost
    low_factor: float = RANGE[0]
    high_factor: float = RANGE[1]


def prior_cost(model: ModelSpec, gpu: GpuSpec, engine: EngineSpec, budget: KvBudget) -> PriorCost:
    """Seconds by data sheet. Stages of a pipeline work one after another on a token, so they add up."""
    ranks = engine.tp
    bandwidth = gpu.memory_bandwidth_bytes_per_s * BANDWIDTH_SHARE
    weight_bytes = sum(ledger.line("weights").size_bytes.likely for ledger in budget.ledgers)
    block_tokens = max(group.block_size for group in budget.groups)
    token_bytes = sum(budget.bytes_per_block) / block_tokens
    all_reduces = 2 * len(model.layers) * ALL_REDUCE_S if ranks > 1 else 0.0
    return PriorCost(
        likely=StepCost(
            fixed_s=FIXED_S + all_reduces,
            compute_s_per_token=2
            * model.active_parameters
            / ranks
            / (gpu.dense_bf16_flops_per_s * FLOPS_SHARE),
            weights_s=weight_bytes / bandwidth,
            context_s_per_token=token_bytes / bandwidth,
            sequence_s=SEQUENCE_S,
        )
    )
