"""gpt-oss: every second layer sees a window, attention has biases and sinks, all layers hold experts.

Source: vLLM 0.32 model_executor/models/gpt_oss.py; defaults from GptOssConfig of Transformers 5.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from estimator.families.common import Body, assemble, layer_count, read_heads
from estimator.families.layer_types import common_window, every, layer_types, window, with_defaults
from estimator.families.parts import attention, gated_experts, linear, norm
from estimator.fields import Fields
from estimator.model import Layer, Matrix, ModelSpec, Part

DEFAULTS: Final = {
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "sliding_window": 128,
    "num_local_experts": 128,
    "num_experts_per_tok": 4,
}
PERIOD: Final = 2


def read_gpt_oss(fields: Fields) -> ModelSpec:
    """The layers of even index slide whatever layer_types says; it decides about the others alone."""
    fields = with_defaults(fields, DEFAULTS)
    hidden, width = fields.size("hidden_size"), fields.size("intermediate_size")
    heads = replace(read_heads(fields), bias=True, output_bias=True)
    matrices = (
        norm("input_layernorm", hidden),
        *attention(hidden, heads),
        norm("self_attn.sinks", heads.heads, split="output"),
        norm("post_attention_layernorm", hidden),
        *_mixture(hidden, width, fields.size("num_local_experts")),
    )
    kinds = layer_types(fields) or every(PERIOD, layer_count(fields))
    sizes = (window(fields), common_window(fields, kinds))
    layers = [Layer(caches=(heads.cache(window_tokens=size),), matrices=matrices) for size in sizes]
    visited = fields.size("num_experts_per_tok")
    return assemble(
        fields,
        Body(
            layers=[layers[index % PERIOD] for index in range(len(kinds))],
            intermediate_size=width * visited,
            attention_heads=heads.heads,
            rope_size=2 * heads.head_size,  # its table is float32, of twice the bytes
            experts=fields.size("num_local_experts"),
            experts_per_token=visited,
        ),
    )


def _mixture(hidden: int, width: int, experts: int) -> tuple[Matrix, ...]:
    """Router and experts, each with a bias; that of `down` stays whole, as row-parallel biases do."""
    upward, downward = gated_experts(hidden, width, experts)
    return (
        *linear("mlp.router", experts, hidden, "none", bias=True, quantised=False),
        upward,
        replace(upward, name=f"{upward.name}.bias", columns=1, quantised=False),
        downward,
        Matrix(
            name=f"{downward.name}.bias",
            parts=(Part(rows=hidden),),
            columns=1,
            split="none",
            experts=experts,
            quantised=False,
        ),
    )


READERS: Final[Mapping[str, Callable[[Fields], ModelSpec]]] = {"GptOssForCausalLM": read_gpt_oss}
