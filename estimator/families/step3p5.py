"""Step 3.5: layers with a window have heads of their own; a gate a head; a float32 router over experts.

Source: vLLM 0.32 model_executor/models/step3p5.py, transformers_utils/configs/step3p5.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from estimator.families.common import Body, assemble, layer_count
from estimator.families.layer_types import FULL, SLIDING, layer_types, window
from estimator.families.parts import Heads, attention, gated_experts, gated_mlp, linear, norm, router
from estimator.fields import LAYERS_MAX, Fields
from estimator.model import Layer, Matrix, ModelSpec
from estimator.spec import SpecError

ROUTER_BYTES: Final = 4


def read_step3p5(fields: Fields) -> ModelSpec:
    """Checkpoints list more kinds than layers: those of the draft layers, which are not loaded."""
    count = layer_count(fields)
    listed = fields.values.get("layer_types")
    if isinstance(listed, list):
        fields = replace(fields, values={**fields.values, "layer_types": listed[:count]})
    kinds = layer_types(fields) or tuple(FULL if index % 2 else SLIDING for index in range(count))
    mixtures = _mixture_layers(fields, count)
    shapes = [(kind, index in mixtures) for index, kind in enumerate(kinds)]
    layers = {shape: _layer(fields, *shape) for shape in set(shapes)}
    visited = fields.size("moe_top_k") if mixtures else 0
    heads = _heads(fields, FULL)
    return assemble(
        fields,
        Body(
            layers=[layers[shape] for shape in shapes],
            intermediate_size=fields.size("intermediate_size"),
            attention_heads=heads.heads,
            rope_size=heads.head_size,
            experts=fields.size("moe_num_experts") if mixtures else 0,
            experts_per_token=visited,
        ),
    )


def _layer(fields: Fields, kind: str, is_mixture: bool) -> Layer:
    hidden, heads = fields.size("hidden_size"), _heads(fields, kind)
    has_gate = fields.flag("use_head_wise_attn_gate")
    return Layer(
        caches=(heads.cache(window_tokens=window(fields) if kind == SLIDING else None),),
        matrices=(
            norm("input_layernorm", hidden),
            *attention(hidden, heads),
            *(linear("self_attn.g_proj", heads.heads, hidden, "output") if has_gate else ()),
            norm("post_attention_layernorm", hidden),
            *(_mixture(fields) if is_mixture else gated_mlp(hidden, fields.size("intermediate_size"))),
        ),
    )


def _heads(fields: Fields, kind: str) -> Heads:
    """The heads of attention_other_setting in the layers of its attention_type."""
    other = fields.inner("attention_other_setting")
    is_other = bool(fields.words("layer_types")) and other.values.get("attention_type") == kind
    source = other if is_other else fields
    heads, kv_heads = source.size("num_attention_heads"), source.size("num_attention_groups")
    if heads % kv_heads != 0:
        raise SpecError(f"num_attention_groups: {heads} heads do not share {kv_heads} KV heads evenly")
    hidden = fields.size("hidden_size")
    own = fields.size("head_dim", default=hidden // heads if hidden % heads == 0 else None)
    return Heads(
        heads=heads,
        kv_heads=kv_heads,
        head_size=source.size("head_dim", default=own),
        bias=fields.flag("attention_bias"),
        qk_norm=True,
    )


def _mixture(fields: Fields) -> tuple[Matrix, ...]:
    hidden, experts = fields.size("hidden_size"), fields.size("moe_num_experts")
    width = fields.size("moe_intermediate_size")
    shared = fields.size("share_expert_dim", default=width * fields.size("moe_top_k"))
    return (
        router(hidden, experts, name="moe.gate", element_bytes=ROUTER_BYTES),
        norm("moe.router_bias", experts, element_bytes=ROUTER_BYTES),
        *gated_mlp(hidden, shared, name="moe.share_expert"),
        *gated_experts(hidden, width, experts, name="moe.experts"),
    )


def _mixture_layers(fields: Fields, count: int) -> frozenset[int]:
    """The indices that the text moe_layers_enum lists; where it is absent, all but the first."""
    if not fields.has("moe_layers_enum"):
        return frozenset(range(1, count))
    text = fields.word("moe_layers_enum")
    indices = text.replace(" ", "").split(",")
    if len(indices) > LAYERS_MAX or not all(index.isdecimal() and len(index) < 5 for index in indices):
        raise SpecError(f"moe_layers_enum must list layer numbers such as '3,4,5', got {text[:60]!r}")
    return frozenset(int(index) for index in indices) & frozenset(range(count))


READERS: Final[Mapping[str, Callable[[Fields], ModelSpec]]] = {"Step3p5ForCausalLM": read_step3p5}
