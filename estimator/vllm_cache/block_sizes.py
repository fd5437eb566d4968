"""The block sizes vLLM 0.32 settles on for a server before it asks its layers what they keep.

Source: platforms/interface.py update_block_size_for_backend and the two alignments after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from estimator.model import DTYPE_BYTES, Attention, LatentAttention, RecurrentState
from estimator.spec import SpecError, heads_on_rank
from estimator.units import ceil_div
from estimator.vllm_cache.backends import (
    DEFAULT_BLOCK_SIZE,
    Kernel,
    common_block_size,
    kernels,
    smallest_common,
)
from estimator.vllm_cache.formats import format_of, is_turboquant, latent_bytes
from estimator.vllm_cache.rank import Rank, draft_layers
from estimator.vllm_cache.states import state_bytes

LATENT_BLOCK_MULTIPLE: Final = 128
"""Hybrid models with latent attention: the decode kernels want whole 128 tokens a block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """The block sizes vLLM settles on before it asks the layers. Bytes are 0 where nothing is padded."""

    block_size: int
    state_block_size: int
    state_page_bytes: int
    shared_page_bytes: int
    """What layers left unquantised beside TurboQuant's share their page with."""


def block_sizes(rank: Rank) -> Blocks:
    """Source: platforms/interface.py update_block_size_for_backend and the two alignments after it."""
    found = kernels(rank.model, rank.gpu, rank.kv_dtype, draft_layers(rank.model, rank.engine))
    if not found:
        return Blocks(
            block_size=rank.engine.block_size or DEFAULT_BLOCK_SIZE,
            state_block_size=rank.max_model_len,
            state_page_bytes=0,
            shared_page_bytes=0,
        )
    block_size = rank.engine.block_size or common_block_size(found)
    refusing = [kernel for kernel in found if not kernel.accepts(block_size)]
    if refusing:
        raise SpecError(
            f"--block-size {block_size} is not a multiple of the {refusing[0].smallest} tokens that "
            f"{refusing[0].name} needs; use {common_block_size(found)}"
        )
    page_bytes = 0
    if rank.model.has_state:
        block_size, page_bytes = _align_hybrid(rank, found, block_size)
    shared_bytes = 0
    if is_turboquant(rank.kv_dtype) and not rank.model.has_state:
        block_size, shared_bytes = _align_mixed(rank, found, block_size)
    return Blocks(
        block_size=block_size,
        state_block_size=block_size if rank.caches_prefixes else rank.max_model_len,
        state_page_bytes=page_bytes,
        shared_page_bytes=shared_bytes,
    )


def _align_hybrid(rank: Rank, found: tuple[Kernel, ...], block_size: int) -> tuple[int, int]:
    """Block size whose attention page holds one state, and that page in bytes.

    Source: platforms/interface.py _align_hybrid_block_size.
    """
    states = {cache for cache in rank.model.caches if isinstance(cache, RecurrentState)}
    largest_bytes = max(state_bytes(rank.model, rank.engine, state) for state in states)
    token_bytes = _token_bytes(rank)
    step = max(found[0].smallest, block_size, LATENT_BLOCK_MULTIPLE if rank.model.is_latent else 0)
    common = smallest_common(found)
    needed = step * ceil_div(largest_bytes, step * token_bytes)
    aligned = max(block_size, common * ceil_div(needed, common))
    return aligned, aligned * token_bytes


def _token_bytes(rank: Rank) -> int:
    """Bytes one token takes in one attention layer: the model's first."""
    cache = next(c for c in rank.model.caches if isinstance(c, Attention | LatentAttention))
    if isinstance(cache, LatentAttention):
        return latent_bytes(rank.model, rank.kv_dtype, cache.latent_size + cache.rope_size)
    heads = heads_on_rank(cache.kv_heads, rank.engine.tp)
    return heads * format_of(rank.model, rank.kv_dtype).head_bytes(cache.head_size, cache.head_size)


def _align_mixed(rank: Rank, found: tuple[Kernel, ...], block_size: int) -> tuple[int, int]:
    """Block size where unquantised layers share the pool with TurboQuant's, and the page they share.

    Source: platforms/interface.py _align_heterogeneous_kv_block_size. It asks the first layer's backend,
    one of the unquantised, so it takes a quantised element for a whole byte.
    """
    cache = next(c for c in rank.model.caches if isinstance(c, Attention))
    elements = 2 * heads_on_rank(cache.kv_heads, rank.engine.tp) * cache.head_size
    needed_bytes = elements * DTYPE_BYTES[rank.model.dtype] * found[0].smallest
    step = max(found[0].smallest, block_size)
    aligned = max(block_size, step * ceil_div(needed_bytes, step * elements))
    return aligned, aligned * elements
