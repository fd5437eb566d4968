"""StarCoder2: layer norms and projections with biases, an MLP without a gate, one window for all layers.

Source: vLLM 0.32 model_executor/models/transformers/base.py over models/starcoder2/modeling_starcoder2.py of
Transformers 5, whose class vLLM takes and which keeps no rotary table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from estimator.families.common import Body, assemble, read_heads
from estimator.families.layer_types import listed_windows, with_defaults
from estimator.families.parts import attention, linear, norm
from estimator.families.towers import layer_norm
from estimator.fields import Fields
from estimator.model import Layer, ModelSpec

DEFAULTS: Final = {"num_key_value_heads": 2, "use_bias": True, "tie_word_embeddings": True}


def read_starcoder2(fields: Fields) -> ModelSpec:
    fields = with_defaults(fields, DEFAULTS)
    hidden, wide = fields.size("hidden_size"), fields.size("intermediate_size")
    bias = fields.flag("use_bias")
    heads = replace(read_heads(fields), bias=bias, output_bias=bias)
    matrices = (
        *layer_norm("input_layernorm", hidden),
        *attention(hidden, heads),
        *layer_norm("post_attention_layernorm", hidden),
        *linear("mlp.c_fc", wide, hidden, "output", bias=bias),
        *linear("mlp.c_proj", hidden, wide, "input", bias=bias),
    )
    windows = listed_windows(fields)
    layers = {
        size: Layer(caches=(heads.cache(window_tokens=size),), matrices=matrices) for size in set(windows)
    }
    spec = assemble(
        fields,
        Body(
            layers=[layers[size] for size in windows],
            intermediate_size=wide,
            attention_heads=heads.heads,
        ),
    )
    return replace(spec, after=(norm("norm.bias", hidden), *spec.after))


READERS: Final[Mapping[str, Callable[[Fields], ModelSpec]]] = {"Starcoder2ForCausalLM": read_starcoder2}
