"""Zamba2: Mamba2 layers, some of them joined by one of a few transformer blocks that they share.

Source: vLLM 0.32 model_executor/models/zamba2.py, transformers' Zamba2Config.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from estimator.families.common import Body, assemble, layer_count, read_heads
from estimator.families.mixers import Mamba2, mamba2, with_defaults
from estimator.families.parts import Heads, attention, gated_mlp, linear, norm
from estimator.fields import Fields, shown
from estimator.model import Layer, Matrix, ModelSpec
from estimator.spec import SpecError

DEFAULTS: Final[Mapping[str, Any]] = {
    "max_position_embeddings": 4096,
    "mamba_d_state": 64,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_ngroups": 1,
    "n_mamba_heads": 8,
    "use_conv_bias": True,
    "num_mem_blocks": 1,
    "adapter_rank": 128,
}
LONG_CONTEXT_TOKENS: Final = 16_384
KINDS: Final[Mapping[str, str]] = {"mamba": "mamba", "linear_attention": "mamba", "hybrid": "hybrid"}


def read_zamba2(fields: Fields) -> ModelSpec:
    """A hybrid layer keeps keys and values of its own; the weights of its block are counted once."""
    long = {"max_position_embeddings": LONG_CONTEXT_TOKENS} if fields.flag("use_long_context") else {}
    head_size = 2 * fields.size("hidden_size") // fields.size("num_attention_heads")
    fixed = {**fields.values, **long, "head_dim": head_size}
    fields = with_defaults(Fields(fixed, fields.outer, fields.name), DEFAULTS, tie_word_embeddings=True)
    hidden, heads = fields.size("hidden_size"), read_heads(fields)
    width = fields.size("intermediate_size", default=4 * hidden)
    mixer = mamba2(hidden, _sizes(fields), name="mamba")
    plain = (*mixer.matrices, norm("input_layernorm", hidden))
    shared = _shared_block(hidden, width, heads)
    adapters, blocks = _adapters(fields, width), fields.size("num_mem_blocks", most=1024)
    joined = (*linear("linear", hidden, hidden, "none"), *adapters, *plain)
    layers, seen = [], 0
    for kind in _kinds(fields):
        if kind == "mamba":
            layers.append(Layer(caches=(mixer.state,), matrices=plain))
            continue
        first_use = shared if seen < blocks else ()
        layers.append(Layer(caches=(heads.cache(), mixer.state), matrices=(*first_use, *joined)))
        seen += 1
    if 0 < seen < blocks:
        layers[-1] = Layer(
            caches=layers[-1].caches, matrices=(*shared * (blocks - seen), *layers[-1].matrices)
        )
    return assemble(
        fields,
        Body(
            layers=layers,
            intermediate_size=width,
            attention_heads=heads.heads,
            rope_size=heads.head_size if fields.flag("use_mem_rope") else 0,
        ),
    )


def _sizes(fields: Fields) -> Mamba2:
    inner = fields.size("hidden_size") * fields.size("mamba_expand", most=64)
    heads = fields.size("n_mamba_heads")
    if inner % heads != 0:
        raise SpecError(f"n_mamba_heads {heads} does not divide the inner size, {inner}")
    return Mamba2(
        heads=heads,
        head_size=inner // heads,
        groups=fields.size("mamba_ngroups"),
        state_size=fields.size("mamba_d_state"),
        conv_kernel=fields.size("mamba_d_conv", least=2, most=1024),
        conv_bias=fields.flag("use_conv_bias"),
        bias=fields.flag("add_bias_linear"),
    )


def _kinds(fields: Fields) -> list[str]:
    words = fields.words("layers_block_type") or fields.words("layer_types")
    count = layer_count(fields)
    if len(words) != count:
        raise SpecError(f"layers_block_type names {len(words)} layers, num_hidden_layers {count}")
    for word in words:
        if word not in KINDS:
            raise SpecError(f"layers_block_type must hold {' or '.join(KINDS)}, got {shown(word)}")
    return [KINDS[word] for word in words]


def _shared_block(hidden: int, width: int, heads: Heads) -> tuple[Matrix, ...]:
    """Attention over hidden state and embedding side by side, and an MLP."""
    merged, output = attention(2 * hidden, heads)
    narrowed = linear(output.name, hidden, output.columns, "input")
    return (
        norm("input_layernorm", 2 * hidden),
        merged,
        *narrowed,
        norm("pre_ff_layernorm", hidden),
        *gated_mlp(hidden, width, name="feed_forward"),
    )


def _adapters(fields: Fields, width: int) -> tuple[Matrix, ...]:
    """The low-rank matrices that make a shared block each layer's own."""
    hidden, rank = fields.size("hidden_size"), fields.size("adapter_rank")
    name = "feed_forward.gate_up_proj_adapter"
    matrices = (
        *linear(f"{name}.A", rank, hidden, "output"),
        *linear(f"{name}.B", (width, width), rank, "output"),
    )
    if not fields.flag("use_shared_attention_adapter"):
        return matrices
    for letter in "qkv":
        name = f"self_attn.linear_{letter}_adapter"
        matrices += linear(f"{name}.A", rank, 2 * hidden, "output")
        matrices += linear(f"{name}.B", 2 * hidden, rank, "output")
    return matrices


READERS: Final[Mapping[str, Callable[[Fields], ModelSpec]]] = {"Zamba2ForCausalLM": read_zamba2}
