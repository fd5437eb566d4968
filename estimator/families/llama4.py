"""Llama 4: chunked attention in the layers with a rotary embedding, full attention in those without, experts.

Source: vLLM 0.32 model_executor/models/{llama4,mllama4}.py; defaults from Llama4TextConfig of Transformers 5.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from estimator.families.common import Body, assemble, layer_count, read_heads
from estimator.families.layer_types import with_defaults
from estimator.families.parts import attention, gated_experts, gated_mlp, norm, router
from estimator.families.towers import llama4_tower
from estimator.fields import Fields
from estimator.model import Layer, Matrix, ModelSpec
from estimator.spec import SpecError

DEFAULTS: Final = {
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "attention_chunk_size": 8192,
    "num_local_experts": 16,
    "num_experts_per_tok": 1,
    "intermediate_size_mlp": 16_384,
    "interleave_moe_layer_step": 1,
    "no_rope_layer_interval": 4,
}


def read_llama4(fields: Fields, *, has_tower: bool) -> ModelSpec:
    fields = with_defaults(fields, DEFAULTS)
    hidden, width = fields.size("hidden_size"), fields.size("intermediate_size")
    heads, visited = read_heads(fields), fields.size("num_experts_per_tok")
    frame = (
        norm("input_layernorm", hidden),
        *attention(hidden, heads),
        norm("post_attention_layernorm", hidden),
    )
    chunk = fields.size("attention_chunk_size", default=0, least=0) or None
    kinds = tuple(zip(_has_rope(fields), _is_mixture(fields), strict=True))
    layers = {
        (has_rope, is_mixture): Layer(
            caches=(heads.cache(chunk_tokens=chunk if has_rope else None),),
            matrices=(*frame, *_feed_forward(fields, hidden, width, is_mixture=is_mixture)),
        )
        for has_rope, is_mixture in set(kinds)
    }
    return assemble(
        fields,
        Body(
            layers=[layers[kind] for kind in kinds],
            intermediate_size=max(fields.size("intermediate_size_mlp"), width * (visited + 1)),
            attention_heads=heads.heads,
            rope_size=heads.head_size,
            experts=fields.size("num_local_experts"),
            experts_per_token=visited,
            tower=llama4_tower(fields) if has_tower else (),
        ),
    )


def _feed_forward(fields: Fields, hidden: int, width: int, *, is_mixture: bool) -> tuple[Matrix, ...]:
    if not is_mixture:
        return gated_mlp(hidden, fields.size("intermediate_size_mlp"), name="feed_forward")
    experts = fields.size("num_local_experts")
    return (
        router(hidden, experts, name="feed_forward.router"),
        *gated_experts(hidden, width, experts, name="feed_forward.experts"),
        *gated_mlp(hidden, width, name="feed_forward.shared_expert"),
    )


def _has_rope(fields: Fields) -> tuple[bool, ...]:
    """Which layers have a rotary embedding; without no_rope_layers all but every so many-th."""
    marks, layers = fields.sizes("no_rope_layers", most=1), layer_count(fields)
    if not marks:
        interval = fields.size("no_rope_layer_interval")
        return tuple((index + 1) % interval != 0 for index in range(layers))
    if len(marks) != layers:
        raise SpecError(f"no_rope_layers must have an entry for each of {layers} layers, got {len(marks)}")
    return tuple(mark != 0 for mark in marks)


def _is_mixture(fields: Fields) -> tuple[bool, ...]:
    step = fields.size("interleave_moe_layer_step", least=0)
    return tuple(step > 0 and (index + 1) % step == 0 for index in range(layer_count(fields)))


READERS: Final[Mapping[str, Callable[[Fields], ModelSpec]]] = {
    "Llama4ForCausalLM": partial(read_llama4, has_tower=False),
    "Llama4ForConditionalGeneration": partial(read_llama4, has_tower=True),
}
