"""Mamba beside attention: Jamba, Falcon-H1 and Granite 4; Zamba2 in its own file.

Source: vLLM 0.32 model_executor/models/{jamba,falcon_h1,granitemoehybrid}.py, transformers' configurations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from estimator.families.common import Body, assemble, layer_count, read_heads
from estimator.families.mixers import Mamba1, Mamba2, Mixer, mamba1, mamba2, time_step_rank, with_defaults
from estimator.families.parts import Heads, attention, gated_experts, gated_mlp, linear, norm, router
from estimator.fields import Fields, shown
from estimator.model import Cache, Layer, Matrix, ModelSpec
from estimator.spec import SpecError

MAMBA_KEYS: Final[Mapping[str, Any]] = {
    "mamba_n_heads": 128,
    "mamba_d_head": "auto",
    "mamba_n_groups": 1,
    "mamba_d_state": 256,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_conv_bias": True,
}
FALCON_H1: Final[Mapping[str, Any]] = {
    **MAMBA_KEYS,
    "mamba_d_ssm": 1024,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
}
GRANITE: Final[Mapping[str, Any]] = {
    **MAMBA_KEYS,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "shared_intermediate_size": 1024,
    "max_position_embeddings": 2048,
}
JAMBA: Final[Mapping[str, Any]] = {
    "mamba_d_state": 16,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_conv_bias": True,
    "num_experts": 16,
    "num_experts_per_tok": 2,
    "expert_layer_period": 2,
    "expert_layer_offset": 1,
    "attn_layer_period": 8,
    "attn_layer_offset": 4,
    "num_key_value_heads": 8,
    "max_position_embeddings": 262144,
}
"""What the Hugging Face config classes fill in."""
GRANITE_KINDS: Final[Mapping[str, str]] = {
    "mamba": "mamba",
    "linear_attention": "mamba",
    "attention": "attention",
    "full_attention": "attention",
}


def read_jamba(fields: Fields) -> ModelSpec:
    """Attention and mixtures come at a period and an offset each."""
    fields = with_defaults(fields, JAMBA, tie_word_embeddings=False)
    hidden, experts = fields.size("hidden_size"), fields.size("num_experts")
    heads = _whole_heads(fields)
    mixer = _jamba_mixer(fields)
    mixers: dict[bool, tuple[Cache, tuple[Matrix, ...]]] = {
        True: (heads.cache(), attention(hidden, heads)),
        False: (mixer.state, mixer.matrices),
    }
    width = fields.size("intermediate_size")
    mixture = (
        router(hidden, experts, name="feed_forward.router"),
        *gated_experts(hidden, width, experts, name="feed_forward.experts"),
    )
    feeds = {
        True: mixture if experts > 1 else gated_mlp(hidden, width, name="feed_forward"),
        False: gated_mlp(hidden, width, name="feed_forward"),
    }
    norms = (norm("input_layernorm", hidden), norm("pre_ff_layernorm", hidden))
    made = {
        (full, sparse): Layer(caches=(cache,), matrices=(*norms, *matrices, *feed))
        for full, (cache, matrices) in mixers.items()
        for sparse, feed in feeds.items()
    }
    rhythm = zip(_every(fields, "attn_layer"), _every(fields, "expert_layer"), strict=True)
    visited = fields.size("num_experts_per_tok") if experts > 1 else 0
    return assemble(
        fields,
        Body(
            layers=[made[shape] for shape in rhythm],
            intermediate_size=width,
            attention_heads=heads.heads,
            experts=experts if experts > 1 else 0,
            experts_per_token=visited,
        ),
    )


def _jamba_mixer(fields: Fields) -> Mixer:
    hidden = fields.size("hidden_size")
    sizes = Mamba1(
        inner=hidden * fields.size("mamba_expand", most=64),
        state_size=fields.size("mamba_d_state"),
        conv_kernel=fields.size("mamba_d_conv", least=2, most=1024),
        time_step_rank=time_step_rank(fields, "mamba_dt_rank"),
        conv_bias=fields.flag("mamba_conv_bias"),
        bias=fields.flag("mamba_proj_bias"),
        inner_norms=True,
    )
    return mamba1(hidden, sizes, name="mamba")


def _every(fields: Fields, what: str) -> list[bool]:
    """Whether each layer falls on the period and offset of `what`."""
    period, offset = fields.size(f"{what}_period"), fields.size(f"{what}_offset", least=0)
    return [index % period == offset for index in range(layer_count(fields))]


def read_falcon_h1(fields: Fields) -> ModelSpec:
    """Every layer runs attention and Mamba2 side by side, and keeps both caches."""
    fields = with_defaults(fields, FALCON_H1)
    hidden, heads = fields.size("hidden_size"), read_heads(fields)
    inner = None if "mamba_d_ssm" in _nulls(fields) else fields.size("mamba_d_ssm")
    mixer = mamba2(hidden, _sizes(fields, inner, gated_norm=fields.flag("mamba_rms_norm")), name="mamba")
    layer = Layer(
        caches=(heads.cache(), mixer.state),
        matrices=(
            norm("input_layernorm", hidden),
            *attention(hidden, heads),
            *mixer.matrices,
            norm("pre_ff_layernorm", hidden),
            *gated_mlp(hidden, fields.size("intermediate_size"), name="feed_forward"),
        ),
    )
    return assemble(
        fields,
        Body(
            layers=(layer,) * layer_count(fields),
            intermediate_size=fields.size("intermediate_size"),
            attention_heads=heads.heads,
            rope_size=heads.head_size,
        ),
    )


def read_granite(fields: Fields) -> ModelSpec:
    """Raises SpecError for a layer type that is neither attention nor Mamba."""
    fields = with_defaults(fields, GRANITE)
    hidden, bias = fields.size("hidden_size"), fields.flag("attention_bias")
    heads = replace(_whole_heads(fields), bias=bias, output_bias=bias)
    norms = norm("input_layernorm", hidden), norm("post_attention_layernorm", hidden)
    frame, kinds = (*norms, *_granite_feed(fields)), _granite_kinds(fields)
    made = {"attention": Layer(caches=(heads.cache(),), matrices=(*frame, *attention(hidden, heads)))}
    if "mamba" in kinds:
        mixer = mamba2(hidden, _sizes(fields, None), name="mamba")
        made["mamba"] = Layer(caches=(mixer.state,), matrices=(*frame, *mixer.matrices))
    experts = fields.size("num_local_experts", least=0)
    visited = fields.size("num_experts_per_tok") if experts else 0
    is_rotary = fields.word("position_embedding_type", default="") == "rope"
    return assemble(
        fields,
        Body(
            layers=[made[kind] for kind in kinds],
            intermediate_size=max(
                fields.size("shared_intermediate_size", least=0), visited * fields.size("intermediate_size")
            ),
            attention_heads=heads.heads,
            rope_size=heads.head_size if is_rotary else 0,
            experts=experts,
            experts_per_token=visited,
        ),
    )


def _granite_kinds(fields: Fields) -> list[str]:
    count = layer_count(fields)
    words = fields.words("layer_types") or fields.words("layers_block_type") or ("mamba",) * count
    for word in words:
        if word not in GRANITE_KINDS:
            raise SpecError(f"layer_types must hold {' or '.join(GRANITE_KINDS)}, got {shown(word)}")
    if len(words) < count:
        raise SpecError(f"layer_types names {len(words)} layers, num_hidden_layers {count}; they must agree")
    return [GRANITE_KINDS[word] for word in words[:count]]


def _granite_feed(fields: Fields) -> tuple[Matrix, ...]:
    """Routed experts, where there are any, and one shared MLP."""
    hidden, experts = fields.size("hidden_size"), fields.size("num_local_experts", least=0)
    shared, block = fields.size("shared_intermediate_size", least=0), "block_sparse_moe"
    matrices: tuple[Matrix, ...] = ()
    if experts:
        routed = gated_experts(hidden, fields.size("intermediate_size"), experts, name=f"{block}.experts")
        matrices = (router(hidden, experts, name=f"{block}.gate"), *routed)
    if shared:
        matrices += linear("shared_mlp.input_linear", (shared, shared), hidden, "output")
        matrices += linear("shared_mlp.output_linear", hidden, shared, "input")
    return matrices


def _sizes(fields: Fields, inner: int | None, *, gated_norm: bool = True) -> Mamba2:
    """The Mamba2 layer of mamba_* keys; inner None: mamba_expand times the hidden size."""
    inner = inner or fields.size("hidden_size") * fields.size("mamba_expand", most=64)
    heads = fields.size("mamba_n_heads")
    is_auto = fields.values.get("mamba_d_head") == "auto"
    head_size = max(1, inner // heads) if is_auto else fields.size("mamba_d_head")
    if heads * head_size != inner:
        raise SpecError(f"mamba_n_heads {heads} x mamba_d_head {head_size} must be the inner size, {inner}")
    return Mamba2(
        heads=heads,
        head_size=head_size,
        groups=fields.size("mamba_n_groups"),
        state_size=fields.size("mamba_d_state"),
        conv_kernel=fields.size("mamba_d_conv", least=2, most=1024),
        conv_bias=fields.flag("mamba_conv_bias"),
        bias=fields.flag("mamba_proj_bias"),
        gated_norm=gated_norm,
    )


def _whole_heads(fields: Fields) -> Heads:
    """Heads of the hidden size divided by their number: these classes read no head_dim."""
    return read_heads(replace(fields, values={**fields.values, "head_dim": None}))


def _nulls(fields: Fields) -> set[str]:
    """Keys that the config itself sets to null, which here differs from leaving them out."""
    return {key for key, value in fields.outer.items() if value is None}


READERS: Final[Mapping[str, Callable[[Fields], ModelSpec]]] = {
    "JambaForCausalLM": read_jamba,
    "FalconH1ForCausalLM": read_falcon_h1,
    "GraniteMoeHybridForCausalLM": read_granite,
}
