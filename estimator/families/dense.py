"""Dense decoders whose layers are all built alike: Llama, Mistral, Qwen2, Qwen3, MiMo and their like.

Source: vLLM 0.32 model_executor/models/{llama,mistral,qwen2,qwen3,mimo}.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from estimator.families.common import Body, assemble, read_heads
from estimator.families.layer_types import asked_windows, listed_windows, with_defaults
from estimator.families.parts import attention, gated_mlp, norm
from estimator.fields import Fields
from estimator.model import Layer, ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Dense:
    """What an architecture means where its config.json is silent."""

    attention_bias: bool | None = None
    """q, k and v carry a bias; None: as the key attention_bias says."""
    output_bias: bool = False
    """The output projection follows attention_bias too."""
    mlp_bias: bool = False
    """The key mlp_bias is honoured."""
    qk_norm: bool = False
    windows: Callable[[Fields], Sequence[int | None]] = asked_windows
    """The window of each layer."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What its Transformers config class puts where config.json has no such key."""


DENSE: Final[Mapping[str, Dense]] = {
    "LlamaForCausalLM": Dense(output_bias=True, mlp_bias=True, windows=listed_windows),
    "MiMoForCausalLM": Dense(attention_bias=True),
    "MistralForCausalLM": Dense(
        output_bias=True, mlp_bias=True, windows=listed_windows, defaults={"sliding_window": 4096}
    ),
    "Qwen2ForCausalLM": Dense(attention_bias=True),
    "Qwen3ForCausalLM": Dense(qk_norm=True, defaults={"head_dim": 128}),
}


def read_dense(fields: Fields, dense: Dense) -> ModelSpec:
    fields = with_defaults(fields, dense.defaults)
    hidden, intermediate = fields.size("hidden_size"), fields.size("intermediate_size")
    bias = fields.flag("attention_bias")
    heads = replace(
        read_heads(fields),
        bias=bias if dense.attention_bias is None else dense.attention_bias,
        output_bias=dense.output_bias and bias,
        qk_norm=dense.qk_norm,
    )
    matrices = (
        norm("input_layernorm", hidden),
        *attention(hidden, heads),
        norm("post_attention_layernorm", hidden),
        *gated_mlp(hidden, intermediate, bias=dense.mlp_bias and fields.flag("mlp_bias")),
    )
    windows = dense.windows(fields)
    layers = {
        size: Layer(caches=(heads.cache(window_tokens=size),), matrices=matrices) for size in set(windows)
    }
    return assemble(
        fields,
        Body(
            layers=[layers[size] for size in windows],
            intermediate_size=intermediate,
            attention_heads=heads.heads,
            rope_size=heads.head_size,
        ),
    )


READERS: Final[Mapping[str, Callable[[Fields], ModelSpec]]] = {
    architecture: lambda fields, dense=dense: read_dense(fields, dense)  # type: ignore[misc]
    for architecture, dense in DENSE.items()
}
