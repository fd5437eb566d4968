"""Decoders pruned layer by layer: some layers have no attention, each has an MLP width of its own (DeciLM).

Source: vLLM 0.32 model_executor/models/nemotron_nas.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from estimator.families.common import Body, assemble, layer_count
from estimator.families.parts import Heads, attention, gated_mlp, norm
from estimator.fields import Fields
from estimator.model import Layer, Matrix, ModelSpec
from estimator.spec import SpecError
from estimator.units import ceil_div

WIDTH_MULTIPLE: Final = 256


def read_pruned(fields: Fields) -> ModelSpec:
    hidden, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    head_size = fields.size("head_dim", default=hidden // heads)
    blocks = fields.objects("block_configs")
    if len(blocks) != layer_count(fields):
        raise SpecError(
            f"block_configs has {len(blocks)} entries for {layer_count(fields)} layers; "
            "give the model's full config.json"
        )
    layers, widest = [], 1
    for block in blocks:
        grouped, mlp = block.inner("attention"), block.inner("ffn")
        caches, matrices = [], list[Matrix]()
        if not grouped.flag("no_op"):
            layer_heads = Heads(
                heads=heads,
                kv_heads=heads // grouped.size("n_heads_in_group", most=heads),
                head_size=head_size,
                bias=fields.flag("attention_bias"),
                output_bias=fields.flag("attention_bias"),
            )
            caches.append(layer_heads.cache())
            matrices += [norm("input_layernorm", hidden), *attention(hidden, layer_heads)]
        if not mlp.flag("no_op"):
            width = _width(mlp, hidden)
            widest = max(widest, width)
            matrices += [norm("post_attention_layernorm", hidden)]
            matrices += gated_mlp(hidden, width, bias=fields.flag("mlp_bias"))
        layers.append(Layer(caches=tuple(caches), matrices=tuple(matrices)))
    return assemble(
        fields,
        Body(layers=layers, intermediate_size=widest, attention_heads=heads, rope_size=head_size),
    )


def _width(mlp: Fields, hidden: int) -> int:
    """ffn_mult counts in units of hidden size, before gating takes a third; rounded up to 256."""
    if not mlp.has("ffn_mult"):
        return mlp.size("intermediate_size")
    width = int(2 * mlp.number("ffn_mult", least=0.01, most=1000) * hidden / 3)
    return ceil_div(max(1, width), WIDTH_MULTIPLE) * WIDTH_MULTIPLE


READERS: Final[Mapping[str, Callable[[Fields], ModelSpec]]] = {"DeciLMForCausalLM": read_pruned}
