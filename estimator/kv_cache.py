"""What a layer's KV cache costs in bytes, and how many blocks a request holds while it lives.

Source of the arithmetic: vLLM 0.32 v1/core/kv_cache_utils.py and v1/kv_cache_interface.py, reproduced to
the block against vLLM's own answers (tests/estimator/test_oracle.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from estimator.spec import CacheLayer, Lengths, UnsupportedModel, Workload, heads_on_rank
from estimator.units import ceil_div

_SHARES = tuple((i + 0.5) / 64 for i in range(64))
"""Evenly spaced shares at which a length distribution is averaged: exact for constants."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KvFormat:
    """How K and V are stored: bits an element, and bytes of scales a token and head (K and V together)."""

    bits: int
    scale_bytes: int = 0


def known_format(formats: Mapping[str, KvFormat], kv_cache_dtype: str, engine: str) -> KvFormat:
    """The format an engine stores `kv_cache_dtype` in; raises UnsupportedModel with those it has."""
    known = formats.get(kv_cache_dtype)
    if known is None:
        raise UnsupportedModel(
            f"not yet supported: --kv-cache-dtype {kv_cache_dtype} with {engine}; "
            f"use one of {', '.join(formats)}"
        )
    return known


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Blocks one request occupies: with its shortest prompt in, at its longest, and on average."""

    start_blocks: int
    longest_blocks: int
    mean_blocks: float


def page_bytes(layer: CacheLayer, block_size: int, tp: int, kv_format: KvFormat) -> int:
    """Bytes of one block of one layer on one rank: tokens x heads x (K + V elements, and their scales)."""
    head_bytes = (layer.head_size + layer.head_size_v) * kv_format.bits // 8 + kv_format.scale_bytes
    return block_size * heads_on_rank(layer.kv_heads, tp) * head_bytes


def bytes_per_block(layers: Iterable[CacheLayer], block_size: int, tp: int, kv_format: KvFormat) -> int:
    """Bytes one block id costs on one rank: it stands for one page in every layer of the group."""
    return sum(page_bytes(layer, block_size, tp, kv_format) for layer in layers)


def held_blocks(tokens: int, block_size: int) -> int:
    """Blocks that `tokens` computed tokens of one request occupy under full attention."""
    return ceil_div(tokens, block_size)


def _held_sum(tokens: int, block_size: int) -> int:
    """Sum of held_blocks(n) for n = 1..tokens, in closed form."""
    full, rest = divmod(tokens, block_size)
    return block_size * full * (full + 1) // 2 + rest * (full + 1)


def held_over_life(workload: Workload, block_size: int) -> Held:
    """Blocks a request of this workload holds, its mean weighted by how long it stays.

    A request decodes output - 1 steps (the first token falls out of the prefill) and holds
    held_blocks(input + j) during the j-th, so a long answer weighs more than a short one. The mean is
    vLLM's own `decode_mean` for constant lengths.
    """
    block_steps = 0
    steps = 0
    for input_tokens in _typical(workload.input_tokens):
        for output_tokens in _typical(workload.output_tokens):
            decode_steps = max(output_tokens - 1, 1)
            first = input_tokens if output_tokens == 1 else input_tokens + 1
            block_steps += _held_sum(first + decode_steps - 1, block_size) - _held_sum(first - 1, block_size)
            steps += decode_steps
    return Held(
        start_blocks=held_blocks(workload.input_tokens.shortest, block_size),
        longest_blocks=held_blocks(workload.longest_tokens, block_size),
        mean_blocks=block_steps / steps,
    )


def _typical(lengths: Lengths) -> tuple[int, ...]:
    return (lengths.longest,) if lengths.kind == "constant" else tuple(lengths.at(share) for share in _SHARES)
