"""One GPU of a server: what the pages on it depend on beside the layer."""

from __future__ import annotations

from dataclasses import dataclass, replace

from estimator.engine_spec import EngineSpec
from estimator.model import Attention, LatentAttention, Layer, ModelSpec
from estimator.spec import GpuSpec, SpecError
from estimator.vllm_cache.formats import kv_dtype_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """What a page depends on besides the layer."""

    model: ModelSpec
    gpu: GpuSpec
    engine: EngineSpec
    kv_dtype: str
    max_model_len: int

    @property
    def caches_prefixes(self) -> bool:
        """vLLM never caches prefixes of models without attention or with an encoder.

        Source: config/model.py is_prefix_caching_supported.
        """
        return self.engine.enable_prefix_caching and self.model.has_attention and not self._has_encoder

    @property
    def _has_encoder(self) -> bool:
        return any(isinstance(cache, Attention) and cache.cross for cache in self.model.caches)


def rank_of(model: ModelSpec, gpu: GpuSpec, engine: EngineSpec, max_model_len: int) -> Rank:
    """Raises SpecError for a --kv-cache-dtype this model cannot use."""
    return Rank(
        model=model,
        gpu=gpu,
        engine=engine,
        kv_dtype=kv_dtype_of(model, gpu, engine),
        max_model_len=max_model_len,
    )


def draft_layers(model: ModelSpec, engine: EngineSpec) -> tuple[Layer, ...]:
    """The layers a speculative method adds: the checkpoint's own, or full attention shaped like the model's.

    Raises SpecError for multi-token prediction without layers for it.
    """
    asked = engine.speculative
    if asked is None or asked.method == "ngram":
        return ()
    if asked.method == "mtp":
        if not model.draft_layers:
            raise SpecError(f"{model.name} has no multi-token-prediction layers; use another method than mtp")
        return model.draft_layers
    alike = next(
        (c for c in reversed(list(model.caches)) if isinstance(c, Attention | LatentAttention)), None
    )
    if alike is None:
        raise SpecError(f"{model.name} has no attention layer that a draft model could be like")
    if isinstance(alike, Attention):
        alike = replace(alike, window_tokens=None, chunk_tokens=None, cross=False)
    return (Layer(caches=(alike,)),) * asked.draft_layers
