"""Liquid LFM2: gated short convolutions with full attention every few layers, dense or sparse.

Source: vLLM 0.32 model_executor/models/{lfm2,lfm2_moe}.py, transformers' configuration classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from estimator.families.common import Body, assemble, layer_count, read_heads
from estimator.families.mixers import short_conv, with_defaults
from estimator.families.parts import attention, gated_experts, linear, norm, router
from estimator.fields import Fields, shown
from estimator.model import Cache, Layer, Matrix, ModelSpec
from estimator.spec import SpecError
from estimator.units import ceil_div

COMMON: Final[Mapping[str, Any]] = {
    "num_key_value_heads": 8,
    "max_position_embeddings": 128_000,
    "conv_L_cache": 3,
}
DENSE: Final[Mapping[str, Any]] = {
    **COMMON,
    "intermediate_size": 12288,
    "block_multiple_of": 256,
    "block_ffn_dim_multiplier": 1.0,
    "block_auto_adjust_ff_dim": True,
}
SPARSE: Final[Mapping[str, Any]] = {
    **COMMON,
    "intermediate_size": 7168,
    "moe_intermediate_size": 1792,
    "num_dense_layers": 2,
    "num_experts": 32,
    "num_experts_per_tok": 4,
    "use_expert_bias": True,
}
"""What the Hugging Face config classes fill in."""
FULL, CONV = "full_attention", "conv"


def read_lfm2(fields: Fields) -> ModelSpec:
    """The MLP's width is adjusted as block_auto_adjust_ff_dim says."""
    fields = with_defaults(_old_width(fields), DENSE, tie_word_embeddings=True)
    width = _adjusted_width(fields)
    feed = _mlp(fields.size("block_dim", default=fields.size("hidden_size")), width)
    return _read(fields, [feed] * layer_count(fields), width, experts=0)


def read_lfm2_moe(fields: Fields) -> ModelSpec:
    """The first num_dense_layers layers are dense, the others a mixture."""
    fields = with_defaults(fields, SPARSE, tie_word_embeddings=True)
    hidden, width = fields.size("hidden_size"), fields.size("intermediate_size")
    experts, first = fields.size("num_experts"), fields.size("num_dense_layers", least=0)
    bias = norm("feed_forward.gate.e_score_correction_bias", experts, element_bytes=4)
    mixture = (
        router(hidden, experts, name="feed_forward.gate"),
        *((bias,) if fields.flag("use_expert_bias") else ()),
        *gated_experts(hidden, fields.size("moe_intermediate_size"), experts, name="feed_forward.experts"),
    )
    dense = _mlp(hidden, width)
    feeds = [dense if index < first else mixture for index in range(layer_count(fields))]
    return _read(fields, feeds, width, experts=experts)


def _read(fields: Fields, feeds: list[tuple[Matrix, ...]], width: int, *, experts: int) -> ModelSpec:
    hidden = fields.size("hidden_size")
    heads = replace(read_heads(replace(fields, values={**fields.values, "head_dim": None})), qk_norm=True)
    kernel, bias = fields.size("conv_L_cache", least=2, most=1024), fields.flag("conv_bias")
    mixer = short_conv(fields.size("conv_dim", default=hidden), kernel, bias=bias)
    frame = (norm("operator_norm", hidden), norm("ffn_norm", hidden))
    caches: dict[str, Cache] = {FULL: heads.cache(), CONV: mixer.state}
    matrices = {FULL: attention(hidden, heads), CONV: mixer.matrices}
    return assemble(
        fields,
        Body(
            layers=[
                Layer(caches=(caches[kind],), matrices=(*frame, *matrices[kind], *feed))
                for kind, feed in zip(_kinds(fields), feeds, strict=True)
            ],
            intermediate_size=width,
            attention_heads=heads.heads,
            rope_size=heads.head_size,
            experts=experts,
            experts_per_token=fields.size("num_experts_per_tok") if experts else 0,
        ),
    )


def _kinds(fields: Fields) -> list[str]:
    count = layer_count(fields)
    words = fields.words("layer_types")
    if not words:
        full = set(fields.sizes("full_attn_idxs")) if fields.has("full_attn_idxs") else set(range(count))
        return [FULL if index in full else CONV for index in range(count)]
    if len(words) < count:
        raise SpecError(f"layer_types names {len(words)} layers, num_hidden_layers {count}; they must agree")
    for word in words:
        if word not in (FULL, CONV):
            raise SpecError(f"layer_types must hold {FULL} or {CONV}, got {shown(word)}")
    return list(words[:count])


def _adjusted_width(fields: Fields) -> int:
    """Source: vLLM lfm2.py Lfm2MLP."""
    width = fields.size("intermediate_size")
    if not fields.flag("block_auto_adjust_ff_dim"):
        return width
    factor = fields.number("block_ffn_dim_multiplier", least=0.001, most=1000)
    multiple = fields.size("block_multiple_of")
    return multiple * ceil_div(int(factor * int(2 * width / 3)), multiple)


def _mlp(hidden: int, width: int) -> tuple[Matrix, ...]:
    return (
        *linear("feed_forward.w13", (width, width), hidden, "output"),
        *linear("feed_forward.w2", hidden, width, "input"),
    )


def _old_width(fields: Fields) -> Fields:
    """block_ff_dim wins over intermediate_size, the name that replaced it."""
    width = fields.values.get("block_ff_dim")
    return fields if width is None else replace(fields, values={**fields.values, "intermediate_size": width})


READERS: Final[Mapping[str, Callable[[Fields], ModelSpec]]] = {
    "Lfm2ForCausalLM": read_lfm2,
    "Lfm2MoeForCausalLM": read_lfm2_moe,
}
