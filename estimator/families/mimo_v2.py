"""MiMo-V2: layers of full attention among layers with a window, each with heads of its own size, and experts.

Source: vLLM 0.32 model_executor/models/mimo_v2.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from estimator.families.common import Body, assemble, layer_count
from estimator.families.parts import Heads, attention, gated_experts, gated_mlp, norm, router
from estimator.fields import Fields, shown
from estimator.model import DTYPE_BYTES, Layer, Matrix, ModelSpec
from estimator.spec import SpecError

WINDOWED: Final = 1
"""What hybrid_layer_pattern calls a layer with a window; its keys begin with SWA."""
SWA: Final = "swa_"
ROUTER_DTYPE: Final = "float32"


def read_mimo_v2(fields: Fields) -> ModelSpec:
    hidden, width = fields.size("hidden_size"), fields.size("intermediate_size")
    kinds = tuple(zip(_pattern(fields), _mixtures(fields), strict=True))
    layers = {kind: _layer(fields, hidden, *kind) for kind in set(kinds)}
    is_mixture = any(is_one for _, is_one in kinds)
    visited = fields.size("num_experts_per_tok") if is_mixture else 0
    heads = _heads(fields, "")
    return assemble(
        fields,
        Body(
            layers=[layers[kind] for kind in kinds],
            intermediate_size=width,
            attention_heads=heads.heads,
            rope_size=_rope_size(fields),
            experts=fields.size("n_routed_experts") if is_mixture else 0,
            experts_per_token=visited,
        ),
    )


def _layer(fields: Fields, hidden: int, is_windowed: bool, is_mixture: bool) -> Layer:
    heads = _heads(fields, SWA if is_windowed else "")
    has_sinks = is_windowed and fields.flag("add_swa_attention_sink_bias")
    size = fields.size("sliding_window_size", "sliding_window") if is_windowed else None
    return Layer(
        caches=(heads.cache(window_tokens=size),),
        matrices=(
            norm("input_layernorm", hidden),
            *attention(hidden, heads),
            *((norm("self_attn.attention_sink_bias", heads.heads, split="output"),) if has_sinks else ()),
            norm("post_attention_layernorm", hidden),
            *(_mixture(fields) if is_mixture else gated_mlp(hidden, fields.size("intermediate_size"))),
        ),
    )


def _heads(fields: Fields, prefix: str) -> Heads:
    """The projections of the layers whose keys begin with `prefix`."""
    heads = fields.size(f"{prefix}num_attention_heads")
    kv_heads = fields.size(f"{prefix}num_key_value_heads")
    if heads % kv_heads != 0:
        raise SpecError(f"{prefix}num_key_value_heads: {heads} heads do not share {kv_heads} evenly")
    head_size = fields.size(f"{prefix}head_dim")
    return Heads(
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        head_size_v=fields.size(f"{prefix}v_head_dim", default=head_size),
        bias=fields.flag("attention_bias"),
    )


def _rope_size(fields: Fields) -> int:
    """Rotary elements of a position: a table for either kind of layer, one where they are the same."""
    share = fields.number("partial_rotary_factor", default=1.0, least=0.0, most=1.0)
    tables = {
        (int(fields.size(f"{prefix}head_dim") * share), fields.values.get(f"{prefix}rope_theta"))
        for prefix in ("", SWA)
    }
    return sum(size for size, _ in tables)


def _mixture(fields: Fields) -> tuple[Matrix, ...]:
    hidden, experts = fields.size("hidden_size"), fields.size("n_routed_experts")
    dtype = fields.word("moe_router_dtype", default=ROUTER_DTYPE)
    if dtype not in DTYPE_BYTES:
        raise SpecError(f"moe_router_dtype must be one of {', '.join(DTYPE_BYTES)}, got {shown(dtype)}")
    return (
        router(hidden, experts, element_bytes=DTYPE_BYTES[dtype]),
        norm("mlp.gate.e_score_correction_bias", experts, element_bytes=DTYPE_BYTES["float32"]),
        *gated_experts(hidden, fields.size("moe_intermediate_size"), experts),
    )


def _pattern(fields: Fields) -> tuple[bool, ...]:
    return tuple(entry == WINDOWED for entry in _per_layer(fields, "hybrid_layer_pattern"))


def _mixtures(fields: Fields) -> tuple[bool, ...]:
    """Which layers hold experts: those that a list moe_layer_freq marks; without a list, none."""
    if not isinstance(fields.values.get("moe_layer_freq"), list):
        return (False,) * layer_count(fields)
    return tuple(entry != 0 for entry in _per_layer(fields, "moe_layer_freq"))


def _per_layer(fields: Fields, key: str) -> tuple[int, ...]:
    entries, layers = fields.sizes(key, most=1), layer_count(fields)
    if len(entries) != layers:
        raise SpecError(f"{key} must have an entry for each of {layers} layers, got {len(entries)}")
    return entries


READERS: Final[Mapping[str, Callable[[Fields], ModelSpec]]] = {
    "MiMoV2FlashForCausalLM": read_mimo_v2,
    "MiMoV2ForCausalLM": read_mimo_v2,
}
