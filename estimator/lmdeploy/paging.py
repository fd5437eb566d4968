"""The block of LMDeploy's PyTorch engine: how many tokens it holds and what it costs.

Source: LMDeploy 0.18 pytorch/engine/cache_engine/schema.py and layout.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from estimator.engine_spec import EngineSpec
from estimator.lmdeploy.storage import KvFormat, attention_of, kv_heads_on_rank
from estimator.model import Attention, IndexerKeys, LatentAttention, ModelSpec
from estimator.spec import GpuSpec, SpecError, UnsupportedModel
from estimator.units import ceil_div

ALIGNMENT: Final = 256
"""Each of K, V and their scales is padded to it, layer by layer."""
FLASH_MLA_BLOCK: Final = 64
WIDE_HEAD: Final = 512
WIDE_BLOCK: Final = 32
BLOCK_MIN: Final = 16
HOPPER: Final = (9, 0)
PACKED_LATENT_BYTES: Final = 656
"""fp8_ds_mla: 512 latent bytes, four float32 scales, 64 rotary elements in 16 bits."""
INDEXER_SCALE_BYTES: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One block, on one rank."""

    block_bytes: int
    """Of all layers, a sparse indexer's keys included."""
    layer_bytes: int


def block_size_of(model: ModelSpec, gpu: GpuSpec, asked: int) -> int:
    """Tokens of a block: 64 with FlashMLA, at most 32 for heads of 512 and more, else as asked.

    Raises SpecError for a size the engine refuses. Source: executor/base.py (_adjust_block_size).
    """
    if asked < BLOCK_MIN or asked & (asked - 1):
        raise SpecError(f"--block-size {asked}: LMDeploy wants a power of two from {BLOCK_MIN}")
    if model.is_latent and gpu.compute_capability is not None and gpu.compute_capability >= HOPPER:
        if asked != FLASH_MLA_BLOCK:
            raise SpecError(f"--block-size {asked}: FlashMLA wants {FLASH_MLA_BLOCK}; leave it out")
        return asked
    widest = max(
        cache.head_size if isinstance(cache, Attention) else cache.latent_size + cache.rope_size
        for cache in attention_of(model)
    )
    return min(asked, WIDE_BLOCK) if widest >= WIDE_HEAD else asked


def page_of(model: ModelSpec, block_size: int, engine: EngineSpec, stored: KvFormat) -> Page:
    """Bytes of a block. Raises UnsupportedModel where layers differ: the engine has one shape for all."""
    caches = attention_of(model)
    first = caches[0]
    if any(_shape(cache) != _shape(first) for cache in caches):
        raise UnsupportedModel(
            f"{model.architecture}: LMDeploy's PyTorch engine stores all layers in one shape, these differ"
        )
    tensors = (
        _latent_bytes(first, stored)
        if isinstance(first, LatentAttention)
        else _attention_bytes(first, engine.tp, stored)
    )
    layer_bytes = sum(aligned(block_size * size) for size in tensors)
    indexers = (cache for cache in model.caches if isinstance(cache, IndexerKeys))
    indexer_bytes = sum(aligned(block_size * (cache.head_size + INDEXER_SCALE_BYTES)) for cache in indexers)
    return Page(block_bytes=len(caches) * layer_bytes + indexer_bytes, layer_bytes=layer_bytes)


def _shape(cache: Attention | LatentAttention) -> tuple[int, ...]:
    if isinstance(cache, Attention):
        return (cache.kv_heads, cache.head_size, cache.head_size_v)
    return (cache.latent_size, cache.rope_size)


def _attention_bytes(cache: Attention, tp: int, stored: KvFormat) -> tuple[int, ...]:
    """A token's keys, values and their scales on one rank."""
    heads = kv_heads_on_rank(cache.kv_heads, tp)
    elements = ((cache.head_size, stored.key_bits), (cache.head_size_v, stored.value_bits))
    if any(size * bits % 8 for size, bits in elements):
        raise SpecError(f"--kv-cache-dtype: heads of {cache.head_size} do not pack into {stored.words}")
    data = tuple(heads * size * bits // 8 for size, bits in elements)
    return (*data, heads * stored.key_scale_bytes, heads * stored.value_scale_bytes)


def _latent_bytes(cache: LatentAttention, stored: KvFormat) -> tuple[int, ...]:
    """A token's latent, on every rank whole. Values have no elements, yet scales of their own."""
    if cache.sparse and stored.key_bits < 16:
        if stored.words != "fp8":
            raise SpecError(f"--kv-cache-dtype: sparse MLA stores 16 bits or fp8, not {stored.words}")
        return (PACKED_LATENT_BYTES,)
    elements = cache.latent_size + cache.rope_size
    return (elements * stored.key_bits // 8, stored.key_scale_bytes, stored.value_scale_bytes)


def aligned(size_bytes: int) -> int:
    """Rounded up to the 256 bytes that every cached tensor starts at."""
    return ceil_div(size_bytes, ALIGNMENT) * ALIGNMENT
