"""The VRAM ledger of a vLLM 0.32 server, one for each pipeline stage, and the KV blocks they leave.

Source: vLLM 0.32 v1/worker/gpu_worker.py determine_available_memory, v1/worker/utils.py request_memory,
v1/core/kv_cache_utils.py (start-up check). The overheads no file states are priors; they are marked as such
and carry the range of the answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from estimator.engine_spec import EngineSpec
from estimator.held import InFlight
from estimator.kv_group import NULL_BLOCKS
from estimator.memory import (
    KV_CACHE,
    LEFT_FREE,
    NO_OVERHEADS,
    EngineLimits,
    KvBudget,
    Ledger,
    Line,
    Overheads,
    settle,
    whole_bytes,
)
from estimator.model import ModelSpec
from estimator.spec import GpuSpec, Interval, SpecError
from estimator.units import GIB, format_bytes
from estimator.vllm_cache.defaults import limits
from estimator.vllm_cache.layout import KvLayout, headline, kv_layout, num_blocks
from estimator.weights.count import Weights, buffer_bytes

VERSION: Final = "0.32"

NON_TORCH_ONE_GPU: Final = whole_bytes(0.05 * GIB, 0.15 * GIB, 0.5 * GIB)
NON_TORCH_MANY_GPUS: Final = whole_bytes(0.3 * GIB, 0.6 * GIB, 2.0 * GIB)
CUDA_GRAPHS_DENSE: Final = whole_bytes(0.3 * GIB, 0.6 * GIB, 1.5 * GIB)
CUDA_GRAPHS_EXPERTS: Final = whole_bytes(0.5 * GIB, 1.5 * GIB, 4.0 * GIB)
ACTIVATION_FLOOR_BYTES: Final = 0.3 * GIB
ACTIVATION_RANGE: Final = (0.6, 2.5)
HIDDEN_COPIES: Final = 6
"""Hidden-size tensors alive at the forward pass's peak; with the MLP's three, a judgement of the source."""
DRAFT_UNKNOWN: Final = "the weights of the draft model are not counted"
PRIORS: Final = "priors, not measured: the activation peak, CUDA graphs and growth outside PyTorch"


def kv_budget(
    model: ModelSpec,
    gpu: GpuSpec,
    engine: EngineSpec,
    weights: Sequence[Weights],
    overheads: Overheads = NO_OVERHEADS,
) -> KvBudget:
    """The ledgers of one GPU of each stage and the blocks they leave.

    weights: one for each pipeline stage. Raises SpecError when vLLM would not start: it serves no model of
    which not one request of max_model_len fits beside the null block. Where flags fix the KV cache itself,
    the answer is given all the same, and why vLLM would not start is its first caution.
    """
    resolved = limits(model, gpu, engine)
    layout = kv_layout(model, gpu, engine, resolved)
    ledgers = tuple(
        _ledger(gpu, engine, resolved, _used(model, engine, resolved, stage, overheads), block_bytes)
        for stage, block_bytes in zip(weights, layout.bytes_per_block, strict=True)
    )
    override = engine.num_gpu_blocks_override
    blocks = Interval.exact(override) if override else whole_blocks(layout, ledgers)
    obstacles = (
        no_room(model, gpu, ledgers),
        too_few_blocks(model, gpu, engine, resolved, layout, int(blocks.likely)),
    )
    is_fixed = override is not None or engine.kv_cache_memory_bytes is not None
    for obstacle in obstacles:
        if obstacle is not None and not is_fixed:
            raise SpecError(obstacle)
    return KvBudget(
        limits=resolved,
        ledgers=ledgers,
        blocks=blocks,
        reserved_blocks=NULL_BLOCKS,
        bytes_per_block=layout.bytes_per_block,
        groups=layout.groups,
        stored_as=layout.stored_as,
        source="flags" if override else "config",
        cautions=(
            *(obstacle for obstacle in obstacles if obstacle is not None),
            *model.cautions,
            *(() if engine.lookahead_tokens == 0 or weights[-1].draft_bytes else (DRAFT_UNKNOWN,)),
            *(() if overheads != NO_OVERHEADS else (PRIORS,)),
            *_at_the_low_end(resolved, layout, ledgers, blocks),
        ),
        in_flight=InFlight(
            steps=resolved.in_flight_tokens // resolved.max_num_batched_tokens,
            chunk_tokens=resolved.max_num_batched_tokens,
        ),
        headline=headline(layout, int(blocks.likely), resolved.max_model_len),
    )


def whole_blocks(layout: KvLayout, ledgers: Sequence[Ledger]) -> Interval:
    """Blocks that fit beside the other lines, the null block among them: the least over the stages."""
    low, likely, high = (
        num_blocks(layout, [max(0, int(getattr(ledger.kv_bytes, end))) for ledger in ledgers])
        for end in ("low", "likely", "high")
    )
    return Interval(low=low, likely=likely, high=high)


def needed_blocks(layout: KvLayout) -> int:
    """Blocks of one request of max_model_len by vLLM's own count, and the null block."""
    return sum(group.headline_blocks for group in layout.groups) + NULL_BLOCKS


def _ledger(
    gpu: GpuSpec, engine: EngineSpec, resolved: EngineLimits, used: tuple[Line, ...], block_bytes: int
) -> Ledger:
    """vLLM asks for total x utilisation and gives the KV cache what start-up leaves of it.

    --kv-cache-memory-bytes and --num-gpu-blocks-override fix the KV cache; utilisation is then not used.
    """
    if engine.num_gpu_blocks_override is not None:
        fixed_bytes, flag = engine.num_gpu_blocks_override * block_bytes, "--num-gpu-blocks-override"
    elif engine.kv_cache_memory_bytes is not None:
        fixed_bytes, flag = engine.kv_cache_memory_bytes, "--kv-cache-memory-bytes"
    else:
        slack = Line(
            name="not asked for",
            size_bytes=Interval.exact(
                gpu.memory_total_bytes - math.ceil(gpu.memory_total_bytes * resolved.memory_share)
            ),
            source=f"(1 - {resolved.memory_share:g}) x total: CUDA context, NCCL",
        )
        return settle(gpu.memory_total_bytes, (slack, *used), KV_CACHE, "what the lines above leave")
    kv = Line(name=KV_CACHE, size_bytes=Interval.exact(fixed_bytes), source=f"fixed by {flag}")
    return settle(gpu.memory_total_bytes, (*used, kv), LEFT_FREE, "what the lines above leave")


def _used(
    model: ModelSpec, engine: EngineSpec, resolved: EngineLimits, weights: Weights, overheads: Overheads
) -> tuple[Line, ...]:
    """What start-up takes before the KV cache. Source of the terms: determine_available_memory."""
    many = engine.tp * engine.pp > 1
    graphs = CUDA_GRAPHS_EXPERTS if model.experts else CUDA_GRAPHS_DENSE
    return (
        Line(name="weights", size_bytes=Interval.exact(weights.size_bytes), source=weights.source),
        *_drafts(weights),
        Line(
            name="buffers",
            size_bytes=Interval.exact(buffer_bytes(model)),
            source="rotary table and KV scales",
        ),
        Line(
            name="activation peak",
            size_bytes=overheads.activation_bytes or _activation_peak(model, resolved, engine.tp),
            source=_source(
                overheads, "activation_bytes", f"a batch of {resolved.max_num_batched_tokens} tokens"
            ),
        ),
        Line(
            name="CUDA graphs",
            size_bytes=Interval.exact(0) if engine.enforce_eager else overheads.cuda_graph_bytes or graphs,
            source="none with --enforce-eager"
            if engine.enforce_eager
            else _source(overheads, "cuda_graph_bytes", "captured at start-up"),
        ),
        Line(
            name="outside PyTorch",
            size_bytes=overheads.non_torch_bytes or (NON_TORCH_MANY_GPUS if many else NON_TORCH_ONE_GPU),
            source=_source(overheads, "non_torch_bytes", "workspaces of libraries"),
        ),
    )


def _drafts(weights: Weights) -> tuple[Line, ...]:
    if not weights.draft_bytes:
        return ()
    size = Interval.exact(weights.draft_bytes)
    return (Line(name="draft layers", size_bytes=size, source="the checkpoint's own, for speculation"),)


def _source(overheads: Overheads, field: str, what: str) -> str:
    return f"prior: {what}" if getattr(overheads, field) is None else f"{overheads.source}: {what}"


def _activation_peak(model: ModelSpec, resolved: EngineLimits, tp: int) -> Interval:
    """Bytes the profile run needs at its peak: the forward pass, or the sampler's float32 logits if larger.

    Form from reading vLLM 0.32's V2 runner; the coefficients are judgement, so the range is wide.
    """
    tokens = resolved.max_num_batched_tokens
    wide = 2 * (model.intermediate_size / tp + model.hidden_size * model.experts_per_token)
    if not model.experts_per_token:
        wide = 3 * model.intermediate_size / tp
    forward_bytes = 2 * tokens * (HIDDEN_COPIES * model.hidden_size + wide)
    sampler_bytes = 4 * min(resolved.max_num_seqs, tokens) * model.vocab_size
    likely = max(forward_bytes, sampler_bytes, ACTIVATION_FLOOR_BYTES)
    return whole_bytes(ACTIVATION_RANGE[0] * likely, likely, ACTIVATION_RANGE[1] * likely)


def _at_the_low_end(
    resolved: EngineLimits, layout: KvLayout, ledgers: Sequence[Ledger], blocks: Interval
) -> tuple[str, ...]:
    """What goes wrong only if the priors are at their worst."""
    needed = needed_blocks(layout)
    cautions = []
    if blocks.low < needed <= blocks.likely:
        cautions.append(
            f"at the low end of the range vLLM does not start: {blocks.low:,.0f} blocks for the {needed:,} "
            f"that one request of {resolved.max_model_len} tokens and the null block take"
        )
    rests = [ledger.lines[-1] for ledger in ledgers]
    if any(rest.name == LEFT_FREE and rest.size_bytes.low < 0 <= rest.size_bytes.likely for rest in rests):
        cautions.append("at the low end of the range the flags ask for more than the GPU has left")
    return tuple(cautions)


def no_room(model: ModelSpec, gpu: GpuSpec, ledgers: Sequence[Ledger]) -> str | None:
    """Why the weights and what the flags fix do not fit, in a sentence; None where they do."""
    ledger = min(ledgers, key=lambda stage: stage.lines[-1].size_bytes.likely)
    missing_bytes = -ledger.lines[-1].size_bytes.likely
    if missing_bytes <= 0:
        return None
    return (
        f"{model.name} does not fit on {gpu.name}: {format_bytes(missing_bytes)} too little for weights "
        f"({format_bytes(ledger.line('weights').size_bytes.likely)} a GPU), overheads and KV cache; "
        "raise --tp or take a larger GPU"
    )


def too_few_blocks(
    model: ModelSpec, gpu: GpuSpec, engine: EngineSpec, resolved: EngineLimits, layout: KvLayout, blocks: int
) -> str | None:
    """Why vLLM refuses so few blocks, in a sentence; None where one request fits.

    Source: _check_enough_kv_cache_memory, which sets the null block aside first.
    """
    needed = needed_blocks(layout)
    if blocks >= needed:
        return None
    fits = longest_start(model, gpu, engine, resolved, blocks)
    fix = f"use --max-model-len {fits} or less, or raise --tp" if fits else "raise --tp"
    block_bytes = max(layout.bytes_per_block)
    return (
        f"vLLM would not start: one request of max_model_len {resolved.max_model_len} needs "
        f"{format_bytes(needed * block_bytes)} of KV cache with the null block, and "
        f"{format_bytes(blocks * block_bytes)} is left on {gpu.name}; {fix}"
    )


def longest_start(
    model: ModelSpec, gpu: GpuSpec, engine: EngineSpec, resolved: EngineLimits, blocks: int
) -> int:
    """Largest max_model_len of which one request fits into `blocks`, null block included; 0: none does."""
    low, high = 0, resolved.max_model_len
    while low < high:
        middle = (low + high + 1) // 2
        layout = kv_layout(model, gpu, engine, replace(resolved, max_model_len=middle))
        if needed_blocks(layout) <= blocks:
            low = middle
        else:
            high = middle - 1
    return low
