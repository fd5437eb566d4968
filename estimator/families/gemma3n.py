"""Gemma 3n: the last layers read the caches of earlier ones and keep none; every layer has inputs of its own.

Source: vLLM 0.32 model_executor/models/gemma3n.py; defaults from Gemma3nTextConfig of Transformers 5.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from estimator.families.common import Body, assemble, layer_count, read_heads
from estimator.families.layer_types import SLIDING, every, layer_types, window, with_defaults
from estimator.families.parts import Heads, attention, gated_mlp, linear, norm, vocabulary
from estimator.fields import Fields
from estimator.model import Layer, Matrix, ModelSpec
from estimator.spec import SpecError

DEFAULTS: Final = {
    "vocab_size": 262_400,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "max_position_embeddings": 32_768,
    "sliding_window": 512,
    "num_kv_shared_layers": 15,
    "hidden_size_per_layer_input": 256,
    "vocab_size_per_layer_input": 262_144,
    "laurel_rank": 64,
    "altup_num_inputs": 4,
    "tie_word_embeddings": True,
}
PERIOD: Final = 5
NORMS: Final = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)


def read_gemma3n(fields: Fields) -> ModelSpec:
    fields = with_defaults(fields, DEFAULTS)
    layers = layer_count(fields)
    kinds = layer_types(fields) or every(PERIOD, layers)
    owners = layers - shared_layers(fields)
    widths = _widths(fields, layers)
    built: dict[tuple[str, int, bool], Layer] = {}
    shapes = [
        (kind, width, index < owners) for index, (kind, width) in enumerate(zip(kinds, widths, strict=True))
    ]
    for shape in set(shapes):
        built[shape] = _layer(fields, *shape)
    spec = assemble(
        fields,
        Body(
            layers=[built[shape] for shape in shapes],
            intermediate_size=max(widths),
            attention_heads=fields.size("num_attention_heads"),
            rope_size=2 * fields.size("head_dim"),  # one table for sliding layers, one for full ones
        ),
    )
    return replace(spec, before=(*spec.before, *_before(fields, spec.hidden_size)))


def shared_layers(fields: Fields) -> int:
    """How many of the last layers read the caches of earlier ones."""
    layers, shared = layer_count(fields), fields.size("num_kv_shared_layers", default=0, least=0)
    if shared >= layers:
        raise SpecError(f"num_kv_shared_layers must be less than the {layers} layers, got {shared}")
    return shared


def shared_attention(hidden: int, heads: Heads) -> tuple[Matrix, ...]:
    """The projections of a layer that has no keys and values of its own."""
    rows = heads.heads * heads.head_size
    return (
        *linear("self_attn.q_proj", rows, hidden, "output", bias=heads.bias),
        *linear("self_attn.o_proj", hidden, rows, "input", bias=heads.output_bias),
        norm("self_attn.q_norm", heads.head_size),
    )


def per_layer_input(hidden: int, size: int) -> tuple[Matrix, ...]:
    """What mixes a layer's own embedding of the token into the stream; whole on every rank."""
    return (
        *linear("per_layer_input_gate", size, hidden, "none"),
        *linear("per_layer_projection", hidden, size, "none"),
        norm("post_per_layer_input_norm", hidden),
    )


def per_layer_embedding(fields: Fields, hidden: int, size: int) -> tuple[Matrix, ...]:
    """The table of the layers' own embeddings, `size` elements a layer, and its projection."""
    wide = layer_count(fields) * size
    return (
        vocabulary("embed_tokens_per_layer", fields.size("vocab_size_per_layer_input"), wide),
        *linear("per_layer_model_projection", wide, hidden, "output"),
        norm("per_layer_projection_norm", size),
    )


def _layer(fields: Fields, kind: str, wide: int, owns_cache: bool) -> Layer:
    hidden, bias = fields.size("hidden_size"), fields.flag("attention_bias")
    heads = replace(read_heads(fields), bias=bias, output_bias=bias, qk_norm=True)
    size = window(fields) if kind == SLIDING else None
    projections = attention(hidden, heads) if owns_cache else shared_attention(hidden, heads)
    return Layer(
        caches=(heads.cache(window_tokens=size),) if owns_cache else (),
        matrices=(
            *(norm(name, hidden) for name in NORMS),
            *projections,
            *gated_mlp(hidden, wide),
            *_altup(hidden, fields.size("altup_num_inputs", most=64)),
            *_laurel(hidden, fields.size("laurel_rank")),
            *per_layer_input(hidden, fields.size("hidden_size_per_layer_input")),
        ),
    )


def _altup(hidden: int, streams: int) -> tuple[Matrix, ...]:
    """Alternating updates of several parallel streams."""
    return (
        *linear("altup.correction_coefs", streams, streams, "none"),
        *linear("altup.prediction_coefs", streams * streams, streams, "none"),
        *linear("altup.modality_router", streams, hidden, "none"),
        norm("altup.router_norm", hidden),
        norm("altup.correct_output_scale", hidden, element_bytes=4),
    )


def _laurel(hidden: int, rank: int) -> tuple[Matrix, ...]:
    """The learned augmented residual, of low rank."""
    return (
        *linear("laurel.linear_left", rank, hidden, "output"),
        *linear("laurel.linear_right", hidden, rank, "input"),
        norm("laurel.post_laurel_norm", hidden),
    )


def _widths(fields: Fields, layers: int) -> tuple[int, ...]:
    """intermediate_size is one number or a list of one a layer."""
    if not isinstance(fields.values.get("intermediate_size"), list):
        return (fields.size("intermediate_size", default=16_384),) * layers
    widths = fields.sizes("intermediate_size", least=1)
    if len(widths) != layers:
        raise SpecError(
            f"intermediate_size must have an entry for each of {layers} layers, got {len(widths)}"
        )
    return widths


def _before(fields: Fields, hidden: int) -> tuple[Matrix, ...]:
    """What embeds the tokens for each layer and opens and closes the parallel streams."""
    streams = 2 * (fields.size("altup_num_inputs", most=64) - 1)
    return (
        *per_layer_embedding(fields, hidden, fields.size("hidden_size_per_layer_input")),
        *linear("altup_projections", hidden, hidden, "output") * streams,
    )


READERS: Final[Mapping[str, Callable[[Fields], ModelSpec]]] = {"Gemma3nForCausalLM": read_gemma3n}
