"""What a step should cost, from data sheets alone: model, GPU and flags -> ServerCost, its range included.

A roofline with the shares of peak that published serving benchmarks reach; every figure is a prior until
`ullage calibrate` measures the server. Sources: weights are read once a step, a token costs two operations a
parameter (Kaplan et al. 2020, 2.1), the KV cache is read once a step.
"""

from __future__ import annotations

from typing import Final

from estimator.engine_spec import EngineSpec
from estimator.memory import KvBudget
from estimator.model import Attention, Cache, LatentAttention, ModelSpec
from estimator.spec import GpuSpec
from estimator.twin.cost import ServerCost, StepCost

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
CONTEXT_TOKENS: Final = 1024
"""Of a sequence, where the workload is not known."""
OUTPUT_PROJECTION: Final = "self_attn.o_proj"
RANGE: Final = (0.6, 2.0)
"""A step takes from 0.6 to 2 times what this says, by judgement of public benchmarks; not measured here."""


def prior_cost(
    model: ModelSpec,
    gpu: GpuSpec,
    engine: EngineSpec,
    budget: KvBudget,
    context_tokens: int = CONTEXT_TOKENS,
) -> ServerCost:
    """Seconds by data sheet. Stages of a pipeline work one after another on a token, so they add up.

    context_tokens: of a typical sequence while it decodes; a sliding window or a state is read whole, however
    long the sequence, so it weighs less on each token of a longer one.
    """
    ranks = engine.tp
    flops = ranks * gpu.dense_bf16_flops_per_s * FLOPS_SHARE
    bandwidth = gpu.memory_bandwidth_bytes_per_s * BANDWIDTH_SHARE
    weight_bytes = sum(ledger.line("weights").size_bytes.likely for ledger in budget.ledgers)
    held_blocks = sum(group.held(context_tokens) for group in budget.groups)
    sequence_bytes = held_blocks * sum(budget.bytes_per_block)
    all_reduces = 2 * len(model.layers) * ALL_REDUCE_S if ranks > 1 else 0.0
    return ServerCost(
        step=StepCost(
            fixed_s=FIXED_S + all_reduces,
            compute_s_per_token=2 * model.active_parameters / flops,
            weights_s=weight_bytes / bandwidth,
            context_s_per_token=sequence_bytes / context_tokens / bandwidth,
            sequence_s=SEQUENCE_S,
            attention_s_per_pair=4 * _attention_width(model) / flops,
        ),
        low_factor=RANGE[0],
        high_factor=RANGE[1],
        source=f"prior from data sheets, {gpu.name}",
    )


def _attention_width(model: ModelSpec) -> int:
    """Elements of the query, over the layers that attend to every token before it.

    A pair costs a multiplication and an addition an element, once for the score and once for the value
    (Kaplan et al. 2020, 2.1). The output projection reads as many columns as the query has elements. Windows
    and sparse layers attend to a bounded number of tokens, which does not grow with the prompt.
    """
    return sum(
        matrix.columns
        for layer in model.layers
        if any(_attends_to_all(cache) for cache in layer.caches)
        for matrix in layer.matrices
        if matrix.name == OUTPUT_PROJECTION
    )


def _attends_to_all(cache: Cache) -> bool:
    if isinstance(cache, Attention):
        return cache.window_tokens is None and cache.chunk_tokens is None and not cache.cross
    return isinstance(cache, LatentAttention) and not cache.sparse
