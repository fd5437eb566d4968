"""LMDeploy 0.16's TurboMind: its defaults and rules as data, and the KV cache they leave on one GPU.

Read from its source (turbomind.cc, block.h, memory/object.cc, slab.h); NOT verified by execution, and
every answer says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from estimator.kv_cache import KvFormat, bytes_per_block, known_format
from estimator.memory import KV_CACHE, EngineLimits, KvBudget, Ledger, Line, settle, whole_bytes
from estimator.spec import EngineSpec, GpuSpec, Interval, ModelSpec, SpecError, UnsupportedModel
from estimator.units import GIB, MIB, format_bytes
from estimator.weights import Weights, buffer_bytes

VERSION: Final = "0.16 TurboMind"
CACHE_MAX_ENTRY_COUNT: Final = 0.8
"""Share of the memory that is free after the weights."""
BLOCK_SIZE: Final = 64
MAX_PREFILL_TOKENS: Final = 8192
RESERVED_BLOCKS: Final = 0
PAGE_BYTES: Final = 32 * MIB
SLAB_BYTES_MAX: Final = GIB
SLAB_FILL_MIN: Final = 0.95
BATCH_SIZES: Final[Mapping[str, int]] = {
    "h100": 1024,
    "h200": 1024,
    "h800": 1024,
    "l20y": 1024,
    "a100": 384,
    "a800": 384,
}
BATCH_SIZE: Final = 128
CONTEXT_ONE_GPU: Final = whole_bytes(0.3 * GIB, 0.5 * GIB, 1.0 * GIB)
CONTEXT_MANY_GPUS: Final = whole_bytes(0.5 * GIB, 1.2 * GIB, 3.0 * GIB)

KV_FORMATS: Final[Mapping[str, KvFormat]] = {
    "auto": KvFormat(bits=16),
    "int8": KvFormat(bits=8, scale_bytes=8),
    "int4": KvFormat(bits=4, scale_bytes=8),
}
"""--quant-policy 0, 8 and 4: a 16-bit scale and zero for K and for V of every token and head."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slab:
    """TurboMind hands out blocks in slabs, and a slab keeps what its last block does not fill."""

    size_bytes: int
    blocks: int


def slab_of(block_bytes: int) -> Slab:
    """Smallest power of two from 32 MiB that blocks fill to 95%, or 1 GiB. Source: memory/object.cc."""
    size_bytes = PAGE_BYTES
    while size_bytes < block_bytes:
        size_bytes *= 2
    while (
        size_bytes // block_bytes * block_bytes < SLAB_FILL_MIN * size_bytes < SLAB_FILL_MIN * SLAB_BYTES_MAX
    ):
        size_bytes *= 2
    return Slab(size_bytes=size_bytes, blocks=size_bytes // block_bytes)


def limits(model: ModelSpec, gpu: GpuSpec, engine: EngineSpec) -> EngineLimits:
    """Raises SpecError for a flag LMDeploy does not have."""
    for field in ("kv_cache_memory_bytes", "num_gpu_blocks_override"):
        if getattr(engine, field) is not None:
            flag = "--" + field.replace("_", "-")
            raise SpecError(
                f"LMDeploy's TurboMind has no {flag}; use --gpu-memory-utilization, its cache share"
            )
    session_len = engine.max_model_len or model.context_tokens_max
    name = gpu.name.lower()
    slots = next((size for word, size in BATCH_SIZES.items() if word in name), BATCH_SIZE)
    return EngineLimits(
        max_model_len=session_len,
        max_num_seqs=engine.max_num_seqs or slots,
        max_num_batched_tokens=engine.max_num_batched_tokens or MAX_PREFILL_TOKENS,
        block_size=engine.block_size or BLOCK_SIZE,
        memory_share=engine.gpu_memory_utilization or CACHE_MAX_ENTRY_COUNT,
    )


def kv_format(kv_cache_dtype: str) -> KvFormat:
    """Raises UnsupportedModel for a format TurboMind does not store a KV cache in."""
    return known_format(KV_FORMATS, kv_cache_dtype, "LMDeploy")


def kv_budget(model: ModelSpec, gpu: GpuSpec, engine: EngineSpec, weights: Weights) -> KvBudget:
    """The ledger of one GPU and the blocks it leaves; raises SpecError when none is left."""
    if model.quantisation is not None:
        raise UnsupportedModel(f"not yet supported: {model.quantisation} weights with LMDeploy")
    resolved = limits(model, gpu, engine)
    stored = kv_format(engine.kv_cache_dtype)
    per_block_bytes = bytes_per_block(model.cache_layers, resolved.block_size, engine.tp, stored)
    slab = slab_of(per_block_bytes)
    ledger = _ledger(model, gpu, engine, weights, resolved)
    low, likely, high = (
        max(0, int(size)) // PAGE_BYTES * PAGE_BYTES // slab.size_bytes * slab.blocks
        for size in (ledger.kv_bytes.low, ledger.kv_bytes.likely, ledger.kv_bytes.high)
    )
    if likely < 1:
        raise SpecError(
            f"{model.name} does not fit on {gpu.name}: {format_bytes(weights.size_bytes)} of weights a GPU "
            "leave no room for the KV cache; raise --tp or take a larger GPU"
        )
    return KvBudget(
        limits=resolved,
        ledger=ledger,
        blocks=Interval(low=low, likely=likely, high=high),
        reserved_blocks=RESERVED_BLOCKS,
        bytes_per_block=per_block_bytes,
        kv_format=stored,
        source="config",
        cautions=(
            "LMDeploy's rules are read from its source and not verified by execution",
            "priors, not measured: the CUDA context and what libraries hold",
            f"blocks come in slabs of {format_bytes(slab.size_bytes)}, {slab.blocks} each",
        ),
    )


def _ledger(
    model: ModelSpec, gpu: GpuSpec, engine: EngineSpec, weights: Weights, resolved: EngineLimits
) -> Ledger:
    """Free memory is read after the weights and before the activations, which live in what is not taken."""
    context = CONTEXT_ONE_GPU if engine.tp == 1 else CONTEXT_MANY_GPUS
    held_bytes = weights.size_bytes + buffer_bytes(model)
    free = Interval(
        low=max(0, gpu.memory_total_bytes - held_bytes - context.high),
        likely=max(0, gpu.memory_total_bytes - held_bytes - context.likely),
        high=max(0, gpu.memory_total_bytes - held_bytes - context.low),
    )
    share = resolved.memory_share
    cache = Interval(low=int(free.low * share), likely=int(free.likely * share), high=int(free.high * share))
    return settle(
        gpu.memory_total_bytes,
        (
            Line(name="CUDA context", size_bytes=context, source="prior"),
            Line(name="weights", size_bytes=Interval.exact(weights.size_bytes), source=weights.source),
            Line(name="buffers", size_bytes=Interval.exact(buffer_bytes(model)), source="rotary table"),
            Line(name=KV_CACHE, size_bytes=cache, source=f"{share:g} of what is free after the weights"),
        ),
        "for activations",
        "what the lines above leave",
    )
