"""Dense decoders in which some layers see a sliding window: Gemma 2 and 3, Cohere2, EXAONE 4, OLMo 3, Phi-3.

Source: vLLM 0.32 model_executor/models/{gemma2,gemma3,gemma3_mm,commandr,exaone4,phi3,mistral}.py and, for
OLMo 3, models/transformers/base.py; defaults from the config classes of Transformers 5.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Literal

from estimator.families.common import Body, assemble, layer_count, read_heads
from estimator.families.layer_types import every, layer_types, windows, with_defaults
from estimator.families.parts import Heads, attention, gated_mlp, norm
from estimator.families.towers import pixtral_tower, siglip_tower
from estimator.fields import Fields, shown
from estimator.model import Layer, Matrix, ModelSpec, Part, Split
from estimator.spec import UnsupportedModel

SANDWICH: Final = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
AFTERWARDS: Final = ("post_attention_layernorm", "post_feedforward_layernorm")
ROPE_KEYS: Final = ("rope_scaling", "rope_parameters")
Tower = Callable[[Fields], tuple[Matrix, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layered:
    """How an architecture builds its layers, and what it means where its config.json is silent."""

    defaults: Mapping[str, Any]
    period: int = 0
    """Every so many layers one is full where layer_types is absent; 0: then all have the window."""
    period_key: str | None = None
    """The key that says `period`."""
    extra_tokens: int = 0
    """Tokens that a window holds beyond sliding_window."""
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    has_bias: bool = True
    """The key attention_bias is honoured, for all four projections."""
    qk_norm: Literal["head", "heads", "whole"] | None = None
    """Of q and k: one norm for every head, one of all heads divided with them, or kept whole."""
    qk_norm_key: str | None = None
    """The key that turns qk_norm on; None: it is always there."""
    is_scaled: bool = False
    """max_position_embeddings counts what rope_scaling adds already."""
    rope_tables: int = 1
    """Rotary tables: Gemma 3 has one for each kind of layer; Transformers' own classes keep none."""
    tower: Tower | None = None


def read_layered(fields: Fields, layered: Layered) -> ModelSpec:
    """Raises UnsupportedModel for a model that attends both ways, which keeps no cache."""
    fields = with_defaults(fields, layered.defaults)
    if fields.values.get("use_bidirectional_attention") is True:
        raise UnsupportedModel("not yet supported: use_bidirectional_attention, an encoder without a cache")
    hidden, intermediate = fields.size("hidden_size"), fields.size("intermediate_size")
    bias = layered.has_bias and fields.flag("attention_bias")
    heads = replace(read_heads(fields), bias=bias, output_bias=bias, qk_norm=layered.qk_norm == "head")
    matrices = (
        *(norm(name, hidden) for name in layered.norms),
        *attention(hidden, heads),
        *_wide_norms(fields, layered, heads),
        *gated_mlp(hidden, intermediate),
    )
    reaches = _reaches(fields, layered)
    layers = {
        size: Layer(caches=(heads.cache(window_tokens=size),), matrices=matrices) for size in set(reaches)
    }
    return assemble(
        _unscaled(fields) if layered.is_scaled else fields,
        Body(
            layers=[layers[size] for size in reaches],
            intermediate_size=intermediate,
            attention_heads=heads.heads,
            rope_size=heads.head_size * layered.rope_tables,
            tower=layered.tower(fields) if layered.tower else (),
        ),
    )


def read_mistral3(fields: Fields) -> ModelSpec:
    """A Pixtral tower before one of two Mistral decoders."""
    kind = fields.word("model_type", default="mistral")
    if kind not in MISTRAL3:
        raise UnsupportedModel(
            f"not yet supported: a text_config of model_type {shown(kind)}; known are {', '.join(MISTRAL3)}"
        )
    spec = read_layered(fields, replace(MISTRAL3[kind], tower=pixtral_tower))
    if fields.has("tie_word_embeddings") or fields.outer.get("tie_word_embeddings") is not None:
        return spec
    return replace(spec, cautions=(*spec.cautions, UNTIED))


def _reaches(fields: Fields, layered: Layered) -> list[int | None]:
    """The window of each layer, None where it sees every token."""
    kinds = layer_types(fields)
    if not kinds and layered.period:
        period = layered.period
        if layered.period_key:
            period = fields.size(layered.period_key, default=period)
        kinds = every(period, layer_count(fields))
    sizes = windows(fields, kinds)
    return [size if size is None else size + layered.extra_tokens for size in sizes]


def _wide_norms(fields: Fields, layered: Layered, heads: Heads) -> tuple[Matrix, ...]:
    if layered.qk_norm not in ("heads", "whole"):
        return ()
    if layered.qk_norm_key and not fields.flag(layered.qk_norm_key):
        return ()
    split: Split = "output" if layered.qk_norm == "heads" else "none"
    rows, kv_rows = heads.heads * heads.head_size, heads.kv_heads * heads.head_size
    keys = replace(
        norm("self_attn.k_norm", kv_rows, split=split), parts=(Part(rows=kv_rows, kv_heads=heads.kv_heads),)
    )
    return norm("self_attn.q_norm", rows, split=split), keys


def _unscaled(fields: Fields) -> Fields:
    values = {key: value for key, value in fields.values.items() if key not in ROPE_KEYS}
    return replace(fields, values=values)


GEMMA: Final = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
}
GEMMA3: Final = Layered(
    defaults={**GEMMA, "vocab_size": 262_208, "max_position_embeddings": 131_072},
    period=6,
    period_key="sliding_window_pattern",
    norms=SANDWICH,
    qk_norm="head",
    is_scaled=True,
    rope_tables=2,
)
MISTRAL: Final = Layered(defaults={"num_key_value_heads": 8, "sliding_window": 4096})
MINISTRAL3: Final = Layered(defaults={"num_key_value_heads": 8, "head_dim": 128})
MISTRAL3: Final = {"mistral": MISTRAL, "ministral3": MINISTRAL3}
"""The decoders of Mistral3ForConditionalGeneration, by model_type."""
UNTIED: Final = (
    "the config does not say tie_word_embeddings: an output head of its own is counted, which vLLM "
    "leaves out where the checkpoint has none"
)
LAYERED: Final[Mapping[str, Layered]] = {
    "Gemma2ForCausalLM": Layered(defaults=GEMMA, period=2, norms=SANDWICH),
    "Gemma3ForCausalLM": GEMMA3,
    "Gemma3ForConditionalGeneration": replace(GEMMA3, tower=siglip_tower),
    "Cohere2ForCausalLM": Layered(
        defaults={"sliding_window": 4096, "tie_word_embeddings": True},
        period=4,
        period_key="sliding_window_pattern",
        extra_tokens=1,  # its windows were trained to see sliding_window tokens before the current one
        norms=("input_layernorm",),
        has_bias=False,
        qk_norm="heads",
        qk_norm_key="use_qk_norm",
    ),
    "Exaone4ForCausalLM": Layered(
        defaults={"sliding_window": 4096},
        period=4,
        period_key="sliding_window_pattern",
        norms=AFTERWARDS,
        qk_norm="head",
    ),
    "Ministral3ForCausalLM": MINISTRAL3,
    "MinistralForCausalLM": replace(MISTRAL, has_bias=False, rope_tables=0),
    "Olmo3ForCausalLM": Layered(
        defaults={"sliding_window": 4096}, period=4, norms=AFTERWARDS, qk_norm="whole", rope_tables=0
    ),
    "Phi3ForCausalLM": Layered(defaults={}),
}

READERS: Final[Mapping[str, Callable[[Fields], ModelSpec]]] = {
    **{name: partial(read_layered, layered=layered) for name, layered in LAYERED.items()},
    "Mistral3ForConditionalGeneration": read_mistral3,
}
