"""Kimi-Linear and Kimi-K3: Kimi Delta Attention layers with a latent attention layer every few.

Source: vLLM 0.32 models/kimi_k3/nvidia/{model,kda,mla}.py, layers/mamba/gdn/kimi_gdn_linear_attn.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from estimator.families.common import Body, assemble, layer_count
from estimator.families.mixers import Mixer, with_defaults
from estimator.families.moonvit import k3_tower
from estimator.families.parts import gated_experts, gated_mlp, linear, norm, router
from estimator.fields import Fields
from estimator.model import LatentAttention, Layer, Matrix, ModelSpec, Part, RecurrentState
from estimator.spec import SpecError, UnsupportedModel

KDA_ROW_MULTIPLE: Final = 16
"""A merged projection with a full-rank gate is padded to this on each rank."""
DEFAULTS: Final[Mapping[str, Any]] = {"max_position_embeddings": 4096, "num_shared_experts": 0}
"""What KimiLinearConfig fills in."""
FLASHKDA_HEAD_SIZE: Final = 128
FLASHKDA_CAUTION: Final = (
    "prompts are read by FlashKDA, which checkpoints its state (compute capability 9.0, 10.x or 12.x)"
)


def read_kimi_linear(fields: Fields) -> ModelSpec:
    """Raises SpecError when a layer is neither in kda_layers nor latent attention without rotation."""
    fields = with_defaults(fields, DEFAULTS, tie_word_embeddings=False)
    linear_config = fields.inner("linear_attn_config")
    if not linear_config.values:
        raise SpecError("the config has no linear_attn_config; give the model's full config.json")
    kda_layers = set(linear_config.sizes("kda_layers"))
    count, mixture = layer_count(fields), fields.has("num_experts")
    first = fields.size("first_k_dense_replace", default=0, least=0)
    every = fields.size("moe_layer_freq", default=1)
    shapes = [
        (index + 1 in kda_layers, mixture and index >= first and index % every == 0) for index in range(count)
    ]
    made = {shape: _layer(fields, linear_config, *shape) for shape in set(shapes)}
    visited = fields.size("num_experts_per_token") if mixture else 0
    spec = assemble(
        fields,
        Body(
            layers=[made[shape] for shape in shapes],
            draft_layers=_draft_layers(fields, linear_config),
            intermediate_size=max(
                0 if all(sparse for _, sparse in shapes) else fields.size("intermediate_size"),
                fields.size("moe_intermediate_size") * visited if mixture else 0,
            ),
            attention_heads=fields.size("num_attention_heads"),
            experts=fields.size("num_experts") if mixture else 0,
            experts_per_token=visited,
            cautions=(FLASHKDA_CAUTION,) if _checkpoints(linear_config) else (),
        ),
    )
    return replace(spec, after=(*_residual_attention(fields, "output_attn"), *spec.after))


def read_kimi_k3(fields: Fields) -> ModelSpec:
    """Kimi-Linear behind a MoonViT tower and its projector."""
    spec = read_kimi_linear(fields)
    return replace(spec, before=(*spec.before, *k3_tower(fields)))


def _layer(fields: Fields, linear_config: Fields, is_kda: bool, is_sparse: bool) -> Layer:
    hidden = fields.size("hidden_size")
    cache: RecurrentState | LatentAttention
    if is_kda:
        mixer = _kda(hidden, linear_config)
        cache, matrices = mixer.state, mixer.matrices
    else:
        cache, matrices = _latent(fields)
    feed = _mixture(fields) if is_sparse else gated_mlp(hidden, fields.size("intermediate_size"))
    return Layer(
        caches=(cache,),
        matrices=(
            norm("input_layernorm", hidden),
            *matrices,
            norm("post_attention_layernorm", hidden),
            *feed,
            *_residual_attention(fields, "self_attention"),
            *_residual_attention(fields, "mlp"),
        ),
    )


def _kda(hidden: int, config: Fields) -> Mixer:
    """A Kimi Delta Attention layer; the gate is of full rank in Kimi-K3, of low rank in Kimi-Linear."""
    heads, size = config.size("num_heads"), config.size("head_dim")
    kernel = config.size("short_conv_kernel_size", least=2, most=1024)
    full_rank, inner, name = config.flag("use_full_rank_gate"), heads * size, "self_attn"
    state = RecurrentState(
        mixer="kda",
        heads=heads,
        head_size=size,
        groups=heads,
        state_size=size,
        conv_kernel=kernel,
        state_dtype="float32",
        prefill_checkpoint=_checkpoints(config),
    )
    forget = Part(rows=size, kv_heads=1)
    wide = (Part(rows=inner),) * (4 if full_rank else 3)
    merged = Matrix(
        name=f"{name}.in_proj_qkvgfab",
        parts=(*wide, forget, Part(rows=heads)),
        columns=hidden,
        split="output",
        rank_multiple=KDA_ROW_MULTIPLE if full_rank else 1,
    )
    gate: tuple[Matrix, ...] = ()
    if not full_rank:
        gate = (
            *linear(f"{name}.g_a_proj", size, hidden, "none"),
            *linear(f"{name}.g_b_proj", inner, size, "output"),
        )
    conv = linear(f"{name}.conv1d", 3 * inner, kernel, "output", quantised=False)
    matrices = (
        merged,
        *linear(f"{name}.f_b_proj", inner, size, "output"),
        norm(f"{name}.dt_bias", inner, split="output", element_bytes=4),
        *(replace(matrix, element_bytes=4) for matrix in conv),
        norm(f"{name}.A_log", heads, split="output", element_bytes=4),
        *gate,
        norm(f"{name}.o_norm", size),
        *linear(f"{name}.o_proj", hidden, inner, "input"),
    )
    return Mixer(state=state, matrices=matrices)


def _checkpoints(config: Fields) -> bool:
    """Whether FlashKDA reads the prompts. Source: vLLM kda.py resolve_kda_prefill_backend."""
    bounded = config.has("gate_lower_bound")
    return config.flag("use_full_rank_gate") and bounded and config.size("head_dim") == FLASHKDA_HEAD_SIZE


def _latent(fields: Fields) -> tuple[LatentAttention, tuple[Matrix, ...]]:
    """Multi-head latent attention without rotation. Source: vLLM kimi_k3/nvidia/mla.py."""
    if not fields.flag("mla_use_nope"):
        raise UnsupportedModel(
            "not yet supported: mla_use_nope false; vLLM serves Kimi-Linear only with true"
        )
    hidden, heads, name = fields.size("hidden_size"), fields.size("num_attention_heads"), "self_attn"
    latent, rope = fields.size("kv_lora_rank"), fields.size("qk_rope_head_dim")
    plain, value = fields.size("qk_nope_head_dim"), fields.size("v_head_dim")
    gate = heads * value if fields.flag("mla_use_output_gate") else 0
    keys = Part(rows=latent + rope, kv_heads=1)
    front: tuple[Matrix, ...]
    if fields.has("q_lora_rank"):
        rank = fields.size("q_lora_rank")
        parts = (Part(rows=rank, kv_heads=1), keys, *((Part(rows=gate),) if gate else ()))
        merged = "fused_qkv_a_g_proj" if gate else "fused_qkv_a_proj"
        front = (
            Matrix(name=f"{name}.{merged}", parts=parts, columns=hidden, split="output"),
            norm(f"{name}.q_a_layernorm", rank),
            *linear(f"{name}.q_b_proj", heads * (plain + rope), rank, "output"),
        )
    else:
        front = (
            *linear(f"{name}.q_proj", heads * (plain + rope), hidden, "output"),
            *linear(f"{name}.kv_a_proj_with_mqa", latent + rope, hidden, "none"),
            *(linear(f"{name}.g_proj", gate, hidden, "output") if gate else ()),
        )
    return LatentAttention(latent_size=latent, rope_size=rope), (
        *front,
        norm(f"{name}.kv_a_layernorm", latent),
        *linear(f"{name}.kv_b_proj", heads * (plain + value), latent, "output"),
        *linear(f"{name}.o_proj", hidden, heads * value, "input"),
    )


def _mixture(fields: Fields) -> tuple[Matrix, ...]:
    """Router, shared experts, routed experts (of a latent hidden size in Kimi-K3). Source: KimiMoE."""
    hidden, experts, name = fields.size("hidden_size"), fields.size("num_experts"), "block_sparse_moe"
    width = fields.size("moe_intermediate_size")
    latent = fields.size("routed_expert_hidden_size", default=hidden)
    shared = fields.size("num_shared_experts", least=0) * width
    around: tuple[Matrix, ...] = ()
    if fields.has("routed_expert_hidden_size"):
        around = (
            *linear(f"{name}.routed_expert_down_proj", latent, hidden, "none"),
            *((norm(f"{name}.routed_expert_norm", latent),) if fields.flag("latent_moe_use_norm") else ()),
            *linear(f"{name}.routed_expert_up_proj", hidden, latent, "none"),
        )
    return (
        router(hidden, experts, name=f"{name}.gate"),
        norm(f"{name}.gate.e_score_correction_bias", experts, element_bytes=4),
        *(gated_mlp(hidden, shared, name=f"{name}.shared_experts") if shared else ()),
        *around,
        *gated_experts(latent, width, experts, name=f"{name}.experts"),
    )


def _residual_attention(fields: Fields, name: str) -> tuple[Matrix, ...]:
    """Attention over the residuals of earlier blocks of layers (Kimi-K3)."""
    if not fields.has("attn_res_block_size"):
        return ()
    hidden = fields.size("hidden_size")
    return norm(f"{name}_res_norm", hidden), *linear(f"{name}_res_proj", 1, hidden, "none", quantised=False)


def _draft_layers(fields: Fields, linear_config: Fields) -> tuple[Layer, ...]:
    """Latent-attention layers that join embedding and hidden state. Source: kimi_k3/common/mtp.py."""
    count = fields.size("num_nextn_predict_layers", default=0, least=0, most=64)
    if not count:
        return ()
    hidden = fields.size("hidden_size")
    plain = replace(fields, values={**fields.values, "attn_res_block_size": None})
    layer = _layer(plain, linear_config, False, fields.has("num_experts"))
    joins = (
        norm("enorm", hidden),
        norm("hnorm", hidden),
        *linear("eh_proj", hidden, 2 * hidden, "none", quantised=False),
        norm("final_layernorm", hidden),
    )
    return (replace(layer, matrices=(*joins, *layer.matrices)),) * count


READERS: Final[Mapping[str, Callable[[Fields], ModelSpec]]] = {
    "KimiLinearForCausalLM": read_kimi_linear,
    "KimiK3ForConditionalGeneration": read_kimi_k3,
}
