"""Qwen3-Next, Qwen3.5 and Qwen3.6: Gated DeltaNet layers with full attention every few layers.

Source: vLLM 0.32 model_executor/models/{qwen3_next,qwen3_5}.py, transformers' configuration classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from estimator.families.common import Body, assemble, layer_count, read_heads
from estimator.families.mixers import gated_delta_net, with_defaults
from estimator.families.parts import Heads, attention, gated_experts, gated_mlp, linear, norm, router
from estimator.families.qwen_vision import qwen3_tower, with_tower
from estimator.fields import Fields, shown
from estimator.model import Cache, Layer, Matrix, ModelSpec
from estimator.spec import SpecError

LINEAR, FULL = "linear_attention", "full_attention"
DEFAULTS: Final[Mapping[str, Any]] = {
    "head_dim": 256,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "max_position_embeddings": 32768,
    "shared_expert_intermediate_size": 512,
}
"""What the Hugging Face config classes fill in."""
MULTIMODAL: Final = "ForConditionalGeneration"
SPARSE_TYPES: Final = ("qwen3_5_moe", "qwen3_5_moe_text")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """Experts of a sparse layer."""

    experts: int
    visited: int
    width: int
    shared_width: int


def read_qwen3_next(fields: Fields) -> ModelSpec:
    """Layers are sparse by mlp_only_layers and decoder_sparse_step; the output head is never tied."""
    fields = with_defaults(fields, DEFAULTS, tie_word_embeddings=False)
    dense_only, step = set(fields.sizes("mlp_only_layers")), fields.size("decoder_sparse_step", default=1)
    mixture = _mixture(fields) if fields.size("num_experts", default=512, least=0) else None
    is_sparse = [
        mixture is not None and index not in dense_only and (index + 1) % step == 0
        for index in range(layer_count(fields))
    ]
    return _read(fields, mixture, is_sparse, interleaved=True)


def read_qwen3_5(fields: Fields) -> ModelSpec:
    """Dense or sparse throughout, as the text model's own model_type says."""
    fields = with_defaults(fields, DEFAULTS)
    mixture = _mixture(fields) if fields.word("model_type") in SPARSE_TYPES else None
    spec = _read(fields, mixture, [mixture is not None] * layer_count(fields), interleaved=False)
    return with_tower(spec, qwen3_tower(fields)) if spec.architecture.endswith(MULTIMODAL) else spec


def _read(fields: Fields, mixture: Mixture | None, is_sparse: list[bool], *, interleaved: bool) -> ModelSpec:
    heads = replace(
        read_heads(fields),
        bias=fields.flag("qkv_bias"),
        qk_norm=True,
        output_gate=fields.flag("attn_output_gate", default=True),
    )
    linear_layer = gated_delta_net(fields, interleaved=interleaved)
    mixers: dict[str, tuple[Cache, tuple[Matrix, ...]]] = {
        LINEAR: (linear_layer.state, linear_layer.matrices),
        FULL: (heads.cache(), attention(fields.size("hidden_size"), heads)),
    }
    feed = {sparse: _feed_forward(fields, mixture if sparse else None) for sparse in set(is_sparse)}
    shapes = list(zip(layer_types(fields), is_sparse, strict=True))
    made = {shape: _layer(fields, *mixers[shape[0]], feed[shape[1]]) for shape in set(shapes)}
    draft = _draft_layers(fields, heads, mixture)
    return assemble(
        fields,
        Body(
            layers=[made[shape] for shape in shapes],
            draft_layers=draft,
            intermediate_size=mixture.width * mixture.visited
            if mixture
            else fields.size("intermediate_size"),
            attention_heads=heads.heads,
            rope_size=int(heads.head_size * _rotary_share(fields)),
            experts=mixture.experts if mixture else 0,
            experts_per_token=mixture.visited if mixture else 0,
        ),
    )


def layer_types(fields: Fields) -> tuple[str, ...]:
    """linear_attention or full_attention for each layer; without the list, every fourth layer is full."""
    count = layer_count(fields)
    kinds = fields.words("layer_types")
    if not kinds:
        every = fields.size("full_attention_interval", default=4)
        return tuple(FULL if (index + 1) % every == 0 else LINEAR for index in range(count))
    if len(kinds) < count:
        raise SpecError(f"layer_types names {len(kinds)} layers, num_hidden_layers {count}; they must agree")
    for kind in kinds:
        if kind not in (LINEAR, FULL):
            raise SpecError(f"layer_types must hold {LINEAR} or {FULL}, got {shown(kind)}")
    return kinds[:count]


def _mixture(fields: Fields) -> Mixture:
    return Mixture(
        experts=fields.size("num_experts", default=512),
        visited=fields.size("num_experts_per_tok"),
        width=fields.size("moe_intermediate_size"),
        shared_width=fields.size("shared_expert_intermediate_size", least=0),
    )


def _feed_forward(fields: Fields, mixture: Mixture | None) -> tuple[Matrix, ...]:
    """The MLP or mixture of one layer. Source: qwen3_next.py Qwen3NextSparseMoeBlock."""
    hidden = fields.size("hidden_size")
    if mixture is None:
        return gated_mlp(hidden, fields.size("intermediate_size"))
    shared = gated_mlp(hidden, mixture.shared_width, name="mlp.shared_expert") if mixture.shared_width else ()
    return (
        router(hidden, mixture.experts),
        *linear("mlp.shared_expert_gate", 1, hidden, "none", quantised=False),
        *shared,
        *gated_experts(hidden, mixture.width, mixture.experts),
    )


def _layer(fields: Fields, cache: Cache, mixer: tuple[Matrix, ...], feed: tuple[Matrix, ...]) -> Layer:
    hidden = fields.size("hidden_size")
    scales = ("attn_layer_scale", "ffn_layer_scale") if fields.flag("layer_scale") else ()
    return Layer(
        caches=(cache,),
        matrices=(
            norm("input_layernorm", hidden),
            *mixer,
            norm("post_attention_layernorm", hidden),
            *feed,
            *(norm(scale, hidden) for scale in scales),
        ),
    )


def _draft_layers(fields: Fields, heads: Heads, mixture: Mixture | None) -> tuple[Layer, ...]:
    """Full-attention layers; the first also holds what joins embedding and hidden state.

    Source: qwen3_next_mtp.py and qwen3_5_mtp.py: embedding and output head are the model's own.
    """
    count = fields.size("mtp_num_hidden_layers", "num_nextn_predict_layers", default=1, least=0, most=64)
    if not count:
        return ()
    hidden = fields.size("hidden_size")
    layer = _layer(fields, heads.cache(), attention(hidden, heads), _feed_forward(fields, mixture))
    joins = (
        *linear("fc", hidden, 2 * hidden, "output"),
        *(norm(of, hidden) for of in ("pre_fc_norm_hidden", "pre_fc_norm_embedding", "norm")),
    )
    return replace(layer, matrices=(*joins, *layer.matrices)), *((layer,) * (count - 1))


def _rotary_share(fields: Fields) -> float:
    """Share of a head that the rotary embedding turns, a quarter unless the config says otherwise."""
    source = fields if fields.has("partial_rotary_factor") else fields.inner("rope_parameters")
    return source.number("partial_rotary_factor", default=0.25, least=0.0, most=1.0)


READERS: Final[Mapping[str, Callable[[Fields], ModelSpec]]] = {
    "Qwen3NextForCausalLM": read_qwen3_next,
    "Qwen3_5ForCausalLM": read_qwen3_5,
    "Qwen3_5MoeForCausalLM": read_qwen3_5,
    "Qwen3_5ForConditionalGeneration": read_qwen3_5,
    "Qwen3_5MoeForConditionalGeneration": read_qwen3_5,
}
