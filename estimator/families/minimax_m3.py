"""MiniMax-M3: grouped-query attention, most layers of which pick their tokens by an indexer of their own.

Source: vLLM 0.32 models/minimax_m3/nvidia/model.py and common/indexer.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from estimator.families.common import Body, assemble, layer_count, read_heads
from estimator.families.parts import Heads, attention, gated_experts, gated_mlp, norm, router
from estimator.fields import Fields
from estimator.model import IndexerKeys, Layer, Matrix, ModelSpec, Part
from estimator.spec import SpecError


def read_minimax_m3(fields: Fields) -> ModelSpec:
    hidden, width = fields.size("hidden_size"), fields.size("intermediate_size")
    heads = replace(read_heads(fields), qk_norm=True)
    indexed = fields.inner("sparse_attention_config")
    layers = layer_count(fields)
    has_indexer = _marks(indexed, "sparse_attention_freq", layers, default=0)
    is_mixture = _marks(fields, "moe_layer_freq", layers, default=1)
    index_size = indexed.size("sparse_index_dim") if any(has_indexer) else 0
    index_heads = indexed.size("sparse_num_index_heads") if any(has_indexer) else 0
    norms = norm("input_layernorm", hidden), norm("post_attention_layernorm", hidden)
    dense = gated_mlp(hidden, fields.size("dense_intermediate_size", default=width))
    mixture = _mixture(fields, hidden, width)
    kinds = {
        (sparse, mixed): Layer(
            caches=(IndexerKeys(head_size=index_size, dtype="bfloat16"), heads.cache())
            if sparse
            else (heads.cache(),),
            matrices=(
                *norms,
                *(
                    _indexed_attention(hidden, heads, index_heads, index_size)
                    if sparse
                    else attention(hidden, heads)
                ),
                *(mixture if mixed else dense),
            ),
        )
        for sparse, mixed in set(zip(has_indexer, is_mixture, strict=True))
    }
    visited = fields.size("num_experts_per_tok")
    towers = ("the vision tower's weights are not counted",) if fields.values is not fields.outer else ()
    return assemble(
        fields,
        Body(
            layers=[kinds[kind] for kind in zip(has_indexer, is_mixture, strict=True)],
            intermediate_size=width * visited,
            attention_heads=heads.heads,
            rope_size=fields.size("rotary_dim", default=heads.head_size),
            experts=fields.size("num_local_experts"),
            experts_per_token=visited,
            cautions=towers,
        ),
    )


def _marks(fields: Fields, key: str, layers: int, *, default: int) -> tuple[bool, ...]:
    marks = fields.sizes(key) or (default,) * layers
    if len(marks) != layers:
        raise SpecError(f"{key} has {len(marks)} entries for {layers} layers; give the full config.json")
    return tuple(mark != 0 for mark in marks)


def _indexed_attention(hidden: int, heads: Heads, index_heads: int, index_size: int) -> tuple[Matrix, ...]:
    """The indexer's queries and key are merged into q, k and v; its queries are divided like KV heads."""
    merged, *rest = attention(hidden, heads)
    queries = Part(rows=index_heads * index_size, kv_heads=heads.kv_heads)
    key = Part(rows=index_size, kv_heads=1)
    return (
        replace(merged, parts=(*merged.parts, queries, key)),
        *rest,
        norm("self_attn.index_q_norm", index_size),
        norm("self_attn.index_k_norm", index_size),
    )


def _mixture(fields: Fields, hidden: int, width: int) -> tuple[Matrix, ...]:
    experts, shared = (
        fields.size("num_local_experts"),
        fields.size("n_shared_experts", default=0, least=0),
    )
    block = "block_sparse_moe"
    return (
        router(hidden, experts, name=f"{block}.gate", element_bytes=4),
        *gated_experts(hidden, width, experts, name=f"{block}.experts"),
        *(
            (norm(f"{block}.e_score_correction_bias", experts, element_bytes=4),)
            if fields.flag("use_routing_bias")
            else ()
        ),
        *(gated_mlp(hidden, width * shared, name=f"{block}.shared_experts") if shared else ()),
    )


READERS: Final[Mapping[str, Callable[[Fields], ModelSpec]]] = {
    "MiniMaxM3ForCausalLM": read_minimax_m3,
    "MiniMaxM3SparseForCausalLM": read_minimax_m3,
    "MiniMaxM3SparseForConditionalGeneration": read_minimax_m3,
}
