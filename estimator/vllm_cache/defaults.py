"""vLLM 0.32's limits for one server: the flags given, its own defaults for the rest.

Source: engine/arg_utils.py get_batch_defaults, config/vllm.py maxconcurrent_batches, v1/engine/core.py.
"""

from __future__ import annotations

from typing import Final

from estimator.engine_spec import EngineSpec
from estimator.memory import EngineLimits
from estimator.model import Attention, ModelSpec
from estimator.spec import GpuSpec, SpecError
from estimator.units import GIB
from estimator.vllm_cache.backends import family_of, sees_image_prefixes
from estimator.vllm_cache.groups import groups_of
from estimator.vllm_cache.rank import rank_of

GPU_MEMORY_UTILIZATION: Final = 0.92
"""Source: config/cache.py CacheConfig.gpu_memory_utilization."""
ITEM_TOKENS: Final = {"gemma4": 32 * (70 + 2 + 6)}
"""Tokens of the largest image or video, which must fit one batch: 32 frames of 70 and their marks.

Source: model_executor/models/gemma4_mm.py get_mm_max_tokens_per_item.
"""


def limits(model: ModelSpec, gpu: GpuSpec, engine: EngineSpec) -> EngineLimits:
    """Raises SpecError for a flag vLLM would refuse at start-up."""
    _require_parallel(model, engine)
    max_model_len = _max_model_len(model, engine)
    seqs, tokens = _batch_limits(model, gpu, engine, max_model_len)
    groups = groups_of(rank_of(model, gpu, engine, max_model_len))
    return EngineLimits(
        max_model_len=max_model_len,
        max_num_seqs=seqs,
        max_num_batched_tokens=tokens,
        block_size=min(group[0].spec.block_size for group in groups),
        memory_share=engine.gpu_memory_utilization or GPU_MEMORY_UTILIZATION,
        in_flight_tokens=tokens * concurrent_batches(engine),
    )


def _max_model_len(model: ModelSpec, engine: EngineSpec) -> int:
    asked = engine.max_model_len or model.context_tokens_default or model.context_tokens_max
    if asked > model.context_tokens_max:
        raise SpecError(
            f"--max-model-len {asked} is above the {model.context_tokens_max} tokens {model.name} "
            "was made for, and vLLM refuses it; use that or less"
        )
    return asked


def _batch_limits(model: ModelSpec, gpu: GpuSpec, engine: EngineSpec, max_model_len: int) -> tuple[int, int]:
    """max_num_seqs and max_num_batched_tokens."""
    default_seqs, default_tokens = _batch_defaults(gpu, engine)
    if sees_image_prefixes(model):
        default_tokens = max(default_tokens, ITEM_TOKENS.get(family_of(model), 0))
    seqs = engine.max_num_seqs or default_seqs
    tokens = engine.max_num_batched_tokens or min(default_tokens, seqs * max_model_len)
    if engine.max_num_seqs is None:
        seqs = min(seqs, tokens)
    if tokens < seqs:
        raise SpecError(
            f"--max-num-batched-tokens {tokens} is below --max-num-seqs {seqs} and vLLM refuses it; "
            "raise the first or lower the second"
        )
    return seqs, tokens


def _batch_defaults(gpu: GpuSpec, engine: EngineSpec) -> tuple[int, int]:
    if gpu.memory_total_bytes >= 160 * GIB:
        return 1024, 16384
    if gpu.memory_total_bytes >= 70 * GIB and "a100" not in gpu.name.lower():
        return 1024, {"server": 8192, "llm_class": 16384}[engine.usage]
    return 256, {"server": 2048, "llm_class": 8192}[engine.usage]


def concurrent_batches(engine: EngineSpec) -> int:
    """Steps in flight at once: one for each stage, and one more with async scheduling (V2 model runner).

    Guessing by n-grams turns async scheduling off. Source: config/vllm.py max_concurrent_batches.
    """
    by_ngram = engine.speculative is not None and engine.speculative.method == "ngram"
    return engine.pp + 1 if engine.async_scheduling and not by_ngram else engine.pp


def _require_parallel(model: ModelSpec, engine: EngineSpec) -> None:
    """Source: config/model.py verify_with_parallel_config."""
    if model.attention_heads % engine.tp != 0:
        raise SpecError(
            f"--tp {engine.tp} does not divide the {model.attention_heads} attention heads of {model.name}; "
            "choose a divisor"
        )
    if engine.dcp == 1 or model.is_latent:
        return
    kv_heads = max((cache.kv_heads for cache in model.caches if isinstance(cache, Attention)), default=1)
    most = engine.tp // kv_heads
    if engine.tp <= kv_heads or engine.dcp > most:
        raise SpecError(
            f"--decode-context-parallel-size {engine.dcp} needs --tp {kv_heads * engine.dcp} or more: the "
            f"{kv_heads} KV heads of {model.name} are divided first; lower it or raise --tp"
        )
