"""Gemma 4: full layers with heads of another size than sliding ones; a mixture beside the MLP in one variant.

Source: vLLM 0.32 model_executor/models/{gemma4,gemma4_mm}.py; defaults, and which layer has which heads, from
Gemma4TextConfig of Transformers 5.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Final

from estimator.families.common import Body, assemble, layer_count, read_heads
from estimator.families.gemma3n import (
    per_layer_embedding,
    per_layer_input,
    shared_attention,
    shared_layers,
)
from estimator.families.layer_types import FULL, SLIDING, every, layer_types, window, with_defaults
from estimator.families.parts import Heads, attention, gated_experts, gated_mlp, norm, router
from estimator.families.towers import gemma4_tower
from estimator.fields import Fields
from estimator.model import Layer, Matrix, ModelSpec
from estimator.spec import UnsupportedModel

DEFAULTS: Final = {
    "vocab_size": 262_144,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "global_head_dim": 512,
    "max_position_embeddings": 131_072,
    "sliding_window": 512,
    "hidden_size_per_layer_input": 256,
    "vocab_size_per_layer_input": 262_144,
    "tie_word_embeddings": True,
}
PERIOD: Final = 6
NORMS: Final = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
MIXTURE_NORMS: Final = (
    "post_feedforward_layernorm_1",
    "post_feedforward_layernorm_2",
    "pre_feedforward_layernorm_2",
)


def read_gemma4(fields: Fields, *, has_tower: bool) -> ModelSpec:
    fields = with_defaults(fields, DEFAULTS)
    if fields.values.get("use_bidirectional_attention") == "all":
        raise UnsupportedModel(
            "not yet supported: use_bidirectional_attention 'all', an encoder without a cache"
        )
    kinds = layer_types(fields) or every(PERIOD, layer_count(fields))
    kinds = (*kinds[:-1], FULL)  # the config class makes the last layer full, whatever is written
    owners = len(kinds) - shared_layers(fields)
    shapes = [(kind, index < owners) for index, kind in enumerate(kinds)]
    layers = {shape: _layer(fields, *shape) for shape in set(shapes)}
    has_experts = fields.has("num_experts")
    visited = fields.size("top_k_experts") if has_experts else 0
    dense = fields.size("intermediate_size") * (2 if owners < len(kinds) and _is_double(fields) else 1)
    spec = assemble(
        fields,
        Body(
            layers=[layers[shape] for shape in shapes],
            intermediate_size=dense + (visited * _expert_width(fields) if has_experts else 0),
            attention_heads=fields.size("num_attention_heads"),
            rope_size=fields.size("head_dim") + fields.size("global_head_dim"),  # a table for each kind
            tower=gemma4_tower(fields) if has_tower else (),
            experts=fields.size("num_experts") if has_experts else 0,
            experts_per_token=visited,
        ),
    )
    size = _input_size(fields)
    return replace(
        spec,
        before=(*spec.before, *(per_layer_embedding(fields, spec.hidden_size, size) if size else ())),
    )


def _layer(fields: Fields, kind: str, owns_cache: bool) -> Layer:
    hidden, wide = fields.size("hidden_size"), fields.size("intermediate_size")
    heads, size = _heads(fields, kind), _input_size(fields)
    reach = window(fields) if kind == SLIDING else None
    return Layer(
        caches=(heads.cache(window_tokens=reach),) if owns_cache else (),
        matrices=(
            *(norm(name, hidden) for name in NORMS),
            *(attention(hidden, heads) if owns_cache else shared_attention(hidden, heads)),
            *gated_mlp(hidden, 2 * wide if not owns_cache and _is_double(fields) else wide),
            *(_mixture(fields, hidden) if fields.has("num_experts") else ()),
            *(per_layer_input(hidden, size) if size else ()),
        ),
    )


def _heads(fields: Fields, kind: str) -> Heads:
    """Full layers have the keys global_*; their KV heads count only where keys serve as values."""
    bias = fields.flag("attention_bias")
    if kind != FULL:
        heads = read_heads(fields)
    else:
        is_own = fields.flag("attention_k_eq_v") and fields.has("num_global_key_value_heads")
        kv_key = "num_global_key_value_heads" if is_own else "num_key_value_heads"
        heads = replace(read_heads(fields, kv_key=kv_key), head_size=fields.size("global_head_dim"))
    return replace(heads, bias=bias, output_bias=bias, qk_norm=True)


def _mixture(fields: Fields, hidden: int) -> tuple[Matrix, ...]:
    experts = fields.size("num_experts")
    return (
        router(hidden, experts, name="router.proj"),
        norm("router.scale", hidden),
        norm("router.per_expert_scale", experts),
        *gated_experts(hidden, _expert_width(fields), experts, name="experts"),
        *(norm(name, hidden) for name in MIXTURE_NORMS),
    )


def _expert_width(fields: Fields) -> int:
    return fields.size("moe_intermediate_size", "expert_intermediate_size")


def _is_double(fields: Fields) -> bool:
    """Whether layers without a cache of their own have an MLP of twice the width."""
    return fields.flag("use_double_wide_mlp")


def _input_size(fields: Fields) -> int:
    """Elements of each layer's own embedding of a token; 0: it has none."""
    return fields.size("hidden_size_per_layer_input", default=0, least=0)


READERS: Final[Mapping[str, Callable[[Fields], ModelSpec]]] = {
    "Gemma4ForCausalLM": partial(read_gemma4, has_tower=False),
    "Gemma4ForConditionalGeneration": partial(read_gemma4, has_tower=True),
}
