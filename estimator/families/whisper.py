"""Whisper: an audio encoder, and a decoder whose layers keep their own keys and the encoder's.

Source: vLLM 0.32 model_executor/models/whisper.py; defaults from WhisperConfig of Transformers 5.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from estimator.families.common import Body, assemble
from estimator.families.layer_types import with_defaults
from estimator.families.parts import Heads, attention, linear
from estimator.families.towers import layer_norm, table
from estimator.fields import LAYERS_MAX, Fields
from estimator.model import Layer, Matrix, ModelSpec
from estimator.spec import SpecError

CONV_TAPS: Final = 3
DEFAULTS: Final = {
    "num_mel_bins": 80,
    "max_source_positions": 1500,
    "max_target_positions": 448,
    "tie_word_embeddings": True,
}


def read_whisper(fields: Fields) -> ModelSpec:
    """The caches are the decoder's alone. Every rank keeps the embeddings whole."""
    fields = with_defaults(fields, DEFAULTS)
    hidden, positions = fields.size("d_model"), fields.size("max_target_positions")
    fields = with_defaults(fields, {"hidden_size": hidden, "max_position_embeddings": positions})
    heads, wide = _heads(fields, "decoder"), fields.size("decoder_ffn_dim")
    layer = Layer(
        caches=(heads.cache(), replace(heads.cache(), cross=True)),
        matrices=(
            *_self_attention(hidden, heads),
            *_cross_attention(hidden),
            *_mlp(hidden, wide),
        ),
    )
    spec = assemble(
        fields,
        Body(
            layers=(layer,) * fields.size("decoder_layers", most=LAYERS_MAX),
            intermediate_size=wide,
            attention_heads=heads.heads,
        ),
    )
    return replace(
        spec,
        before=(
            *_encoder(fields, hidden),
            table("decoder.embed_tokens", spec.vocab_size, hidden),
            table("decoder.embed_positions", positions, hidden),
        ),
        after=layer_norm("decoder.layer_norm", hidden),
    )


def _encoder(fields: Fields, hidden: int) -> tuple[Matrix, ...]:
    mel_bins = fields.size("num_mel_bins")
    layer = (
        *_self_attention(hidden, _heads(fields, "encoder")),
        *_mlp(hidden, fields.size("encoder_ffn_dim")),
    )
    return (
        *linear("encoder.conv1", hidden, CONV_TAPS * mel_bins, "none", bias=True, quantised=False),
        *linear("encoder.conv2", hidden, CONV_TAPS * hidden, "none", bias=True, quantised=False),
        table("encoder.embed_positions", fields.size("max_source_positions"), hidden),
        *layer * fields.size("encoder_layers", most=LAYERS_MAX),
        *layer_norm("encoder.layer_norm", hidden),
    )


def _heads(fields: Fields, side: str) -> Heads:
    hidden, heads = fields.size("d_model"), fields.size(f"{side}_attention_heads")
    if hidden % heads != 0:
        raise SpecError(f"{side}_attention_heads: {heads} heads do not share d_model {hidden:,} evenly")
    return Heads(heads=heads, kv_heads=heads, head_size=hidden // heads, bias=True, output_bias=True)


def _self_attention(hidden: int, heads: Heads) -> tuple[Matrix, ...]:
    return (*layer_norm("self_attn_layer_norm", hidden), *attention(hidden, heads))


def _cross_attention(hidden: int) -> tuple[Matrix, ...]:
    return (
        *layer_norm("encoder_attn_layer_norm", hidden),
        *linear("encoder_attn.q_proj", hidden, hidden, "output", bias=True),
        *linear("encoder_attn.kv_proj", (hidden, hidden), hidden, "output", bias=True),
        *linear("encoder_attn.out_proj", hidden, hidden, "input", bias=True),
    )


def _mlp(hidden: int, wide: int) -> tuple[Matrix, ...]:
    return (
        *layer_norm("final_layer_norm", hidden),
        *linear("fc1", wide, hidden, "output", bias=True),
        *linear("fc2", hidden, wide, "input", bias=True),
    )


READERS: Final[Mapping[str, Callable[[Fields], ModelSpec]]] = {
    "WhisperForConditionalGeneration": read_whisper
}
