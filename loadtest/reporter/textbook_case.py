"""A ModelSpec and a GPU in the textbook's own few numbers. Pure."""

from __future__ import annotations

from typing import Final

from estimator.estimate import Estimate
from estimator.memory import KV_CACHE
from estimator.model import Attention, LatentAttention, ModelSpec
from estimator.spec import GpuSpec
from estimator.textbook_memory import TextbookModel
from loadtest.reporter.textbook_sheet import TextbookCase
from loadtest.textbook_facts import TextbookFacts

DTYPES: Final = {"float16": "fp16", "bfloat16": "bf16"}


def textbook_case(model: ModelSpec, gpu: GpuSpec | None, tokens: int) -> TextbookCase:
    """The textbook knows one kind of layer: heads of one size, kept in full. Others are read as that."""
    heads, kv_heads, head_size = _heads(model)
    return TextbookCase(
        model=TextbookModel(
            name=model.name,
            parameters=model.parameters,
            layers=len(model.layers),
            attention_heads=heads,
            kv_heads=kv_heads,
            head_dim=head_size,
            hidden_size=model.hidden_size,
            active_parameters=model.active_parameters if model.experts else None,
        ),
        tokens=tokens,
        weight_dtype=_weight_dtype(model),
        cache_dtype=DTYPES[model.dtype],
        gpu_memory_bytes=None if gpu is None else gpu.memory_total_bytes,
        gpu_flops_per_s=None if gpu is None else gpu.dense_bf16_flops_per_s,
    )


def textbook_facts(answer: Estimate) -> TextbookFacts:
    """What the textbook says of the estimate's model and GPUs, at the engine's max_model_len."""
    engine, budget = answer.engine, answer.budget
    memory = textbook_case(answer.model, answer.gpu, budget.limits.max_model_len).memory(1)
    taken_bytes: dict[str, int] = {}
    for ledger in budget.ledgers:  # of one GPU of each pipeline stage
        for line in ledger.lines:
            if line.name != KV_CACHE:
                size = engine.tp * int(line.size_bytes.likely)
                taken_bytes[line.name] = taken_bytes.get(line.name, 0) + size
    return TextbookFacts(
        gpu=answer.gpu.name,
        gpus=engine.tp * engine.pp,
        gpu_memory_bytes=engine.tp * engine.pp * answer.gpu.memory_total_bytes,
        weights_bytes=memory.weights_bytes,
        overhead_bytes=memory.overhead_bytes,
        growing_bytes=memory.growing_bytes,
        usable_blocks=answer.pool.usable_blocks,
        block_bytes=engine.tp * sum(budget.bytes_per_block),
        taken_bytes=taken_bytes,
    )


def _heads(model: ModelSpec) -> tuple[int, int, int]:
    heads = max(model.attention_heads, 1)
    for cache in model.caches:
        if isinstance(cache, Attention):
            return heads, cache.kv_heads, cache.head_size
        if isinstance(cache, LatentAttention):
            return heads, 1, cache.latent_size + cache.rope_size
    return heads, heads, max(1, model.hidden_size // heads)


def _weight_dtype(model: ModelSpec) -> str:
    """The textbook's nearest dtype: every 8-bit format counts as int8, every 4-bit one as int4."""
    if model.quantisation is None:
        return DTYPES[model.dtype]
    schemes = (model.quantisation.scheme, *(scheme for _, scheme in model.quantisation.schemes_by_module))
    return "int4" if any("int4" in scheme or "fp4" in scheme for scheme in schemes) else "int8"
