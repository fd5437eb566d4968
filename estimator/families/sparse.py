"""Mixtures of experts over one KV cache of full attention: Mixtral, Qwen-MoE, MiniMax, GLM-4 MoE, OLMoE.

Source: vLLM 0.32 model_executor/models/{mixtral,qwen2_moe,qwen3_moe,minimax_m2,glm4_moe,olmoe}.py and
models/minimax_m3/nvidia/model.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from estimator.families import minimax_m3
from estimator.families.common import Body, assemble, layer_count, read_heads
from estimator.families.layer_types import window
from estimator.families.parts import attention, gated_experts, gated_mlp, linear, norm, router
from estimator.fields import Fields
from estimator.model import Layer, Matrix, ModelSpec, Part


@dataclass(frozen=True, slots=True, kw_only=True)
class Sparse:
    """What an architecture calls its parts and where it differs from Mixtral."""

    experts_key: str
    width_key: str = "moe_intermediate_size"
    block: str = "mlp"
    """Name of the module that holds router and experts."""
    router_bytes: int = 2
    correction: str | None = None
    """The key that turns on a float32 bias an expert; "" where it is always there."""
    shared_key: str | None = None
    """Width of the shared expert; a count of experts of width_key where `shared_counts`."""
    shared_counts: bool = False
    shared_gate: bool = False
    bias: bool | None = None
    qk_norm: bool | None = None
    """A norm per head; None: as the key use_qk_norm says."""
    wide_qk_norm: bool = False
    """One norm over all heads, divided with them (MiniMax-M2)."""


SPARSE: Final[Mapping[str, Sparse]] = {
    "MixtralForCausalLM": Sparse(
        experts_key="num_local_experts",
        width_key="intermediate_size",
        block="block_sparse_moe",
        bias=False,
        qk_norm=False,
    ),
    "Qwen2MoeForCausalLM": Sparse(
        experts_key="num_experts",
        bias=True,
        qk_norm=False,
        shared_key="shared_expert_intermediate_size",
        shared_gate=True,
    ),
    "Qwen3MoeForCausalLM": Sparse(
        experts_key="num_experts",
        qk_norm=True,
        shared_key="shared_expert_intermediate_size",
        shared_gate=True,
    ),
    "MiniMaxM2ForCausalLM": Sparse(
        experts_key="num_local_experts",
        width_key="intermediate_size",
        block="block_sparse_moe",
        router_bytes=4,
        correction="use_routing_bias",
        qk_norm=False,
        wide_qk_norm=True,
    ),
    "Glm4MoeForCausalLM": Sparse(
        experts_key="n_routed_experts",
        router_bytes=4,
        correction="",
        shared_key="n_shared_experts",
        shared_counts=True,
    ),
    "OlmoeForCausalLM": Sparse(
        experts_key="num_experts",
        width_key="intermediate_size",
        bias=False,
        qk_norm=False,
        wide_qk_norm=True,
    ),
}


def read_sparse(fields: Fields, sparse: Sparse) -> ModelSpec:
    """A decoder whose layers are dense or a mixture, by the keys its class reads."""
    hidden, width = fields.size("hidden_size"), fields.size(sparse.width_key)
    heads = replace(
        read_heads(fields),
        bias=fields.flag("attention_bias") if sparse.bias is None else sparse.bias,
        qk_norm=fields.flag("use_qk_norm") if sparse.qk_norm is None else sparse.qk_norm,
    )
    frame = (
        norm("input_layernorm", hidden),
        *attention(hidden, heads),
        *(_wide_norms(heads.heads, heads.kv_heads, heads.head_size) if sparse.wide_qk_norm else ()),
        norm("post_attention_layernorm", hidden),
    )
    cache = heads.cache(window_tokens=_window(fields))
    mixture = Layer(caches=(cache,), matrices=(*frame, *mixture_of(fields, sparse)))
    dense = mixture
    is_sparse = sparse_layers(fields)
    if not all(is_sparse):
        mlp = gated_mlp(hidden, fields.size("intermediate_size"))
        dense = Layer(caches=(cache,), matrices=(*frame, *mlp))
    visited = fields.size("num_experts_per_tok")
    return assemble(
        fields,
        Body(
            layers=[mixture if is_one else dense for is_one in is_sparse],
            intermediate_size=width * visited,
            attention_heads=heads.heads,
            rope_size=int(heads.head_size * _rotary_share(fields, heads.head_size)),
            experts=fields.size(sparse.experts_key),
            experts_per_token=visited,
        ),
    )


def _window(fields: Fields) -> int | None:
    """These classes name no window of a layer's own, so a config's window is that of every layer."""
    return window(fields) if fields.flag("use_sliding_window", default=True) else None


def sparse_layers(fields: Fields) -> list[bool]:
    """Which layers are a mixture. Source: mlp_only_layers, decoder_sparse_step, first_k_dense_replace."""
    dense_only = set(fields.sizes("mlp_only_layers"))
    step = fields.size("decoder_sparse_step", default=1)
    first = fields.size("first_k_dense_replace", default=0, least=0)
    return [
        index not in dense_only and (index + 1) % step == 0 and index >= first
        for index in range(layer_count(fields))
    ]


def mixture_of(fields: Fields, sparse: Sparse) -> tuple[Matrix, ...]:
    """Router, routed experts and shared expert of one layer."""
    hidden, experts = fields.size("hidden_size"), fields.size(sparse.experts_key)
    width = fields.size(sparse.width_key)
    matrices = [
        router(hidden, experts, name=f"{sparse.block}.gate", element_bytes=sparse.router_bytes),
        *gated_experts(hidden, width, experts, name=f"{sparse.block}.experts"),
    ]
    if sparse.correction is not None and (not sparse.correction or fields.flag(sparse.correction)):
        matrices.append(norm(f"{sparse.block}.gate.e_score_correction_bias", experts, element_bytes=4))
    shared = fields.size(sparse.shared_key, default=0, least=0) if sparse.shared_key else 0
    if shared:
        name = "shared_experts" if sparse.shared_counts else "shared_expert"
        wide = shared * width if sparse.shared_counts else shared
        matrices += gated_mlp(hidden, wide, name=f"{sparse.block}.{name}")
        if sparse.shared_gate:
            gate = linear(f"{sparse.block}.shared_expert_gate", 1, hidden, "none", quantised=False)
            matrices += gate
    return tuple(matrices)


def _wide_norms(heads: int, kv_heads: int, head_size: int) -> tuple[Matrix, ...]:
    keys = replace(
        norm("self_attn.k_norm", kv_heads * head_size, split="output"),
        parts=(Part(rows=kv_heads * head_size, kv_heads=kv_heads),),
    )
    return norm("self_attn.q_norm", heads * head_size, split="output"), keys


def _rotary_share(fields: Fields, head_size: int) -> float:
    """Share of a head that the rotary embedding turns."""
    if fields.has("rotary_dim"):
        return fields.size("rotary_dim") / head_size
    return fields.number("partial_rotary_factor", default=1.0, least=0.0, most=1.0)


READERS: Final[Mapping[str, Callable[[Fields], ModelSpec]]] = {
    **{
        architecture: lambda fields, sparse=sparse: read_sparse(fields, sparse)  # type: ignore[misc]
        for architecture, sparse in SPARSE.items()
    },
    **minimax_m3.READERS,
}
