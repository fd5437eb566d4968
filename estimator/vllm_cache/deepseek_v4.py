"""The caches of a DeepSeek-V4 layer: latents packed with their scales, and what is not yet compressed.

Source: vLLM 0.32 models/deepseek_v4/attention.py, compressor.py; v1/attention/backends/mla/sparse_swa.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from estimator.model import CompressedAttention
from estimator.spec import SpecError
from estimator.vllm_cache.formats import indexer_bytes
from estimator.vllm_cache.layer_spec import LayerSpec, SpecKind

PACK_BYTES: Final = 576
"""DeepSeek-V4's pages are whole multiples of this."""
WINDOW_BLOCK: Final = 64
COMPRESSOR_BLOCKS: Final = {4: 4, 128: 8}
"""Tokens of a block of compressor state, by ratio. Source: models/deepseek_v4/compressor.py."""


def compressed_specs(cache: CompressedAttention, block_size: int) -> Iterator[LayerSpec]:
    """In vLLM's order. Raises SpecError for a ratio vLLM does not know.

    A latent: its unrotated part in fp8, its rotary part in 16 bits, a scale for each 64 elements and one
    byte of padding.
    """
    plain = cache.head_size - cache.rope_size
    latent = plain + 2 * cache.rope_size + plain // 64 + 1
    window = _packed("latent_window", WINDOW_BLOCK, latent, reach_tokens=cache.window_tokens)
    if cache.ratio <= 1:
        yield window
        return
    if cache.ratio not in COMPRESSOR_BLOCKS:
        raise SpecError(f"compress_ratios: vLLM knows 0, 1, 4 and 128, not {cache.ratio}")
    if cache.index_head_size is not None:
        yield _packed("latent", block_size, indexer_bytes(cache.index_head_size), cache.ratio)
        yield _compressor(cache.index_head_size, cache.ratio)
    yield window
    yield _packed("latent", block_size, latent, cache.ratio)
    yield _compressor(cache.head_size, cache.ratio)


def _compressor(head_size: int, ratio: int) -> LayerSpec:
    """The tokens not yet compressed, as float32 keys and scores; at ratio 4 the windows overlap by half."""
    overlap = 2 if ratio == 4 else 1
    return _packed(
        "latent_window", COMPRESSOR_BLOCKS[ratio], 4 * 2 * overlap * head_size, reach_tokens=overlap * ratio
    )


def _packed(
    kind: SpecKind, block_size: int, slot_bytes: int, tokens_per_slot: int = 1, reach_tokens: int = 0
) -> LayerSpec:
    return LayerSpec(
        kind=kind,
        block_size=block_size,
        heads=1,
        slot_bytes=slot_bytes,
        stored="packed",
        tokens_per_slot=tokens_per_slot,
        reach_tokens=reach_tokens,
        page_multiple_bytes=PACK_BYTES,
    )
