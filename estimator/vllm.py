"""vLLM 0.32's defaults and rules as data, and the KV cache they leave on one GPU.

Source: vLLM 0.32 engine/arg_utils.py (batch defaults), v1/worker/gpu_worker.py (memory budget),
v1/core/kv_cache_utils.py (blocks, start-up check). The overheads no file states are priors; they are
marked as such and carry the range of the answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, Literal

from estimator.kv_cache import KvFormat, bytes_per_block, held_blocks, known_format
from estimator.memory import KV_CACHE, LEFT_FREE, EngineLimits, KvBudget, Ledger, Line, settle, whole_bytes
from estimator.spec import EngineSpec, GpuSpec, Interval, ModelSpec, SpecError
from estimator.units import GIB, format_bytes
from estimator.weights import Weights, buffer_bytes

Usage = Literal["server", "llm_class"]

VERSION: Final = "0.32"
GPU_MEMORY_UTILIZATION: Final = 0.92
BLOCK_SIZE: Final = 16
NULL_BLOCKS: Final = 1
"""vLLM keeps block 0 as the null block and counts it in num_gpu_blocks."""

KV_FORMATS: Final[Mapping[str, KvFormat]] = {
    "auto": KvFormat(bits=16),  # 16-bit whatever the weights are: only a checkpoint's own KV scales change it
    "bfloat16": KvFormat(bits=16),
    "float16": KvFormat(bits=16),
    "fp8": KvFormat(bits=8),
    "fp8_e4m3": KvFormat(bits=8),
    "fp8_e5m2": KvFormat(bits=8),
    "fp8_per_token_head": KvFormat(bits=8, scale_bytes=8),
    "int8_per_token_head": KvFormat(bits=8, scale_bytes=8),
    "int4_per_token_head": KvFormat(bits=4, scale_bytes=8),
}

NON_TORCH_ONE_GPU: Final = whole_bytes(0.05 * GIB, 0.15 * GIB, 0.5 * GIB)
NON_TORCH_MANY_GPUS: Final = whole_bytes(0.3 * GIB, 0.6 * GIB, 2.0 * GIB)
CUDA_GRAPHS: Final = whole_bytes(0.3 * GIB, 0.6 * GIB, 1.5 * GIB)
ACTIVATION_FLOOR_BYTES: Final = 0.3 * GIB
ACTIVATION_RANGE: Final = (0.6, 2.5)
HIDDEN_COPIES: Final = 6
"""Hidden-size tensors alive at the forward pass's peak; with the MLP's three, a judgement of the source."""


def limits(model: ModelSpec, gpu: GpuSpec, engine: EngineSpec, usage: Usage = "server") -> EngineLimits:
    """Raises SpecError for a flag vLLM would refuse at start-up."""
    default_seqs, default_tokens = _batch_defaults(gpu, usage)
    max_model_len = engine.max_model_len or model.context_tokens_max
    if max_model_len > model.context_tokens_max:
        raise SpecError(
            f"--max-model-len {max_model_len} is above the {model.context_tokens_max} tokens {model.name} "
            "was made for, and vLLM refuses it; use that or less"
        )
    seqs = engine.max_num_seqs or default_seqs
    tokens = engine.max_num_batched_tokens or min(default_tokens, seqs * max_model_len)
    if engine.max_num_seqs is None:
        seqs = min(seqs, tokens)
    if tokens < seqs:
        raise SpecError(
            f"--max-num-batched-tokens {tokens} is below --max-num-seqs {seqs} and vLLM refuses it; "
            "raise the first or lower the second"
        )
    block_size = engine.block_size or BLOCK_SIZE
    if block_size % BLOCK_SIZE != 0:
        raise SpecError(
            f"--block-size {block_size} is not a multiple of 16, as attention kernels need; use 16"
        )
    return EngineLimits(
        max_model_len=max_model_len,
        max_num_seqs=seqs,
        max_num_batched_tokens=tokens,
        block_size=block_size,
        memory_share=engine.gpu_memory_utilization or GPU_MEMORY_UTILIZATION,
    )


def _batch_defaults(gpu: GpuSpec, usage: Usage) -> tuple[int, int]:
    """max_num_seqs and max_num_batched_tokens. Source: EngineArgs.get_batch_defaults."""
    if gpu.memory_total_bytes >= 160 * GIB:
        return 1024, 16384
    if gpu.memory_total_bytes >= 70 * GIB and "a100" not in gpu.name.lower():
        return 1024, {"server": 8192, "llm_class": 16384}[usage]
    return 256, {"server": 2048, "llm_class": 8192}[usage]


def kv_format(kv_cache_dtype: str) -> KvFormat:
    """Raises UnsupportedModel for a format whose pages are not proven."""
    return known_format(KV_FORMATS, kv_cache_dtype, "vLLM")


def block_bytes(model: ModelSpec, engine: EngineSpec, block_size: int) -> int:
    """Bytes one block id costs on one rank."""
    return bytes_per_block(model.cache_layers, block_size, engine.tp, kv_format(engine.kv_cache_dtype))


def kv_budget(model: ModelSpec, gpu: GpuSpec, engine: EngineSpec, weights: Weights) -> KvBudget:
    """The ledger of one GPU and the blocks it leaves.

    Raises SpecError when vLLM would not start: it serves no model of which not one request of
    max_model_len fits beside the null block.
    """
    resolved = limits(model, gpu, engine)
    per_block_bytes = block_bytes(model, engine, resolved.block_size)
    used = _used(model, engine, resolved, weights)
    ledger = _ledger(gpu, engine, resolved, used, per_block_bytes)
    override = engine.num_gpu_blocks_override
    blocks = Interval.exact(override) if override else whole_blocks(ledger.kv_bytes, per_block_bytes)
    _require_start(model, gpu, resolved, ledger, per_block_bytes, blocks)
    needed = held_blocks(resolved.max_model_len, resolved.block_size) + NULL_BLOCKS
    cautions = ["priors, not measured: the activation peak, CUDA graphs and growth outside PyTorch"]
    if blocks.low < needed:
        cautions.append(
            f"at the low end of the range vLLM does not start: {blocks.low:,.0f} blocks for the {needed:,} "
            f"that one request of {resolved.max_model_len} tokens and the null block take"
        )
    if ledger.lines[-1].name == LEFT_FREE and ledger.lines[-1].size_bytes.low < 0:
        cautions.append("at the low end of the range the flags ask for more than the GPU has left")
    return KvBudget(
        limits=resolved,
        ledger=ledger,
        blocks=blocks,
        reserved_blocks=NULL_BLOCKS,
        bytes_per_block=per_block_bytes,
        kv_format=kv_format(engine.kv_cache_dtype),
        source="flags" if override else "config",
        cautions=tuple(cautions),
    )


def whole_blocks(kv: Interval, per_block_bytes: int) -> Interval:
    """Blocks that fit in `kv` bytes, the null block among them. Source: kv_cache_utils.get_num_blocks."""
    low, likely, high = (max(0, int(size) // per_block_bytes) for size in (kv.low, kv.likely, kv.high))
    return Interval(low=low, likely=likely, high=high)


def _ledger(
    gpu: GpuSpec, engine: EngineSpec, resolved: EngineLimits, used: tuple[Line, ...], per_block_bytes: int
) -> Ledger:
    """vLLM asks for total x utilisation and gives the KV cache what start-up leaves of it.

    --kv-cache-memory-bytes and --num-gpu-blocks-override fix the KV cache; utilisation is then not used.
    """
    if engine.num_gpu_blocks_override is not None:
        fixed_bytes, flag = engine.num_gpu_blocks_override * per_block_bytes, "--num-gpu-blocks-override"
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


def _used(model: ModelSpec, engine: EngineSpec, resolved: EngineLimits, weights: Weights) -> tuple[Line, ...]:
    """What start-up takes before the KV cache. Source of the terms: gpu_worker.determine_available_memory."""
    return (
        Line(name="weights", size_bytes=Interval.exact(weights.size_bytes), source=weights.source),
        Line(
            name="buffers",
            size_bytes=Interval.exact(buffer_bytes(model)),
            source="rotary table and KV scales",
        ),
        Line(
            name="activation peak",
            size_bytes=_activation_peak(model, resolved, engine.tp),
            source=f"prior: a batch of {resolved.max_num_batched_tokens} tokens",
        ),
        Line(
            name="CUDA graphs",
            size_bytes=Interval.exact(0) if engine.enforce_eager else CUDA_GRAPHS,
            source="none with --enforce-eager" if engine.enforce_eager else "prior",
        ),
        Line(
            name="outside PyTorch",
            size_bytes=NON_TORCH_ONE_GPU if engine.tp == 1 else NON_TORCH_MANY_GPUS,
            source="prior: workspaces of libraries",
        ),
    )


def _activation_peak(model: ModelSpec, resolved: EngineLimits, tp: int) -> Interval:
    """Bytes the profile run needs at its peak: the forward pass, or the sampler's float32 logits if larger.

    Form from reading vLLM 0.32's V2 runner; the coefficients are judgement, so the range is wide.
    """
    tokens = resolved.max_num_batched_tokens
    forward_bytes = 2 * tokens * (HIDDEN_COPIES * model.hidden_size + 3 * model.intermediate_size / tp)
    sampler_bytes = 4 * min(resolved.max_num_seqs, tokens) * model.vocab_size
    likely = max(forward_bytes, sampler_bytes, ACTIVATION_FLOOR_BYTES)
    return whole_bytes(ACTIVATION_RANGE[0] * likely, likely, ACTIVATION_RANGE[1] * likely)


def _require_start(
    model: ModelSpec,
    gpu: GpuSpec,
    resolved: EngineLimits,
    ledger: Ledger,
    per_block_bytes: int,
    blocks: Interval,
) -> None:
    """Source: _check_enough_kv_cache_memory, which sets the null block aside first."""
    last = ledger.lines[-1]
    if last.size_bytes.likely < 0:
        raise SpecError(
            f"{model.name} does not fit on {gpu.name}: {format_bytes(-last.size_bytes.likely)} too little "
            f"for weights ({format_bytes(ledger.line('weights').size_bytes.likely)} a GPU), overheads and "
            "KV cache; raise --tp or take a larger GPU"
        )
    usable = int(blocks.likely) - NULL_BLOCKS
    needed = held_blocks(resolved.max_model_len, resolved.block_size)
    if usable < needed:
        fits = max(0, usable) * resolved.block_size
        fix = f"use --max-model-len {fits} or less, or raise --tp" if fits else "raise --tp"
        raise SpecError(
            f"vLLM would not start: one request of max_model_len {resolved.max_model_len} needs "
            f"{format_bytes((needed + NULL_BLOCKS) * per_block_bytes)} of KV cache with the null block, and "
            f"{format_bytes(ledger.kv_bytes.likely)} is left on {gpu.name}; {fix}"
        )
