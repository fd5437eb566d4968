"""DeepSeek-V2 to V3.2 and what is built alike: Kimi-K2, GLM-5, GLM-4.7-Flash, Mistral-Large-3, openPangu.

Source: vLLM 0.32 model_executor/models/{deepseek_v2,deepseek_mtp,glm4_moe_lite,mistral_large_3,openpangu,
AXK1}.py and models/deepseek_v32/nvidia.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from estimator.families.common import Body, assemble, layer_count, read_heads
from estimator.families.mla import read_latent, stated_size, untied
from estimator.families.parts import attention, gated_experts, gated_mlp, linear, norm, router
from estimator.fields import Fields
from estimator.model import Cache, Layer, Matrix, ModelSpec

DRAFT_LAYERS_MAX: Final = 64


def _by_method(fields: Fields, default: str = "") -> bool:
    return fields.word("topk_method", default=default) == "noaux_tc"


@dataclass(frozen=True, slots=True, kw_only=True)
class Deepseek:
    """Where a class differs from DeepSeek-V3's."""

    is_sparse: bool = False
    """Every layer reads the tokens of an indexer; elsewhere only with an index_topk."""
    router_bytes: int = 2
    has_correction: Callable[[Fields], bool] = _by_method
    """Whether the router has a float32 bias for each expert."""
    is_plain: bool = False
    """Grouped-query attention instead of latents (the first DeepSeek-MoE)."""
    mlp_norms: tuple[str, ...] = ()
    mlp_norms_key: str | None = None
    """The key that turns mlp_norms on; None: they are always there."""


DEEPSEEK: Final[Mapping[str, Deepseek]] = {
    "AXK1ForCausalLM": Deepseek(
        has_correction=lambda fields: _by_method(fields, "noaux_tc"), mlp_norms=("post_mlp_layernorm",)
    ),
    "DeepseekForCausalLM": Deepseek(is_plain=True),
    "DeepseekV2ForCausalLM": Deepseek(),
    "DeepseekV3ForCausalLM": Deepseek(),
    "DeepseekV32ForCausalLM": Deepseek(is_sparse=True),
    "GlmMoeDsaForCausalLM": Deepseek(is_sparse=True),
    "Glm4MoeLiteForCausalLM": Deepseek(router_bytes=4, has_correction=lambda _: True),
    "MistralLarge3ForCausalLM": Deepseek(),
    "PanguUltraMoEForCausalLM": Deepseek(
        has_correction=lambda fields: fields.flag("router_enable_expert_bias"),
        mlp_norms=("pre_mlp_layernorm", "post_mlp_layernorm"),
        mlp_norms_key="sandwich_norm",
    ),
}


def read_deepseek(fields: Fields, deepseek: Deepseek = DEEPSEEK["DeepseekV3ForCausalLM"]) -> ModelSpec:
    """Raises SpecError when a key is missing or absurd."""
    count, experts = layer_count(fields), stated_size(fields, "n_routed_experts")
    drafts = fields.size("num_nextn_predict_layers", default=0, least=0, most=DRAFT_LAYERS_MAX)
    has_experts = _mixture_layers(fields, count + drafts) if experts else (False,) * (count + drafts)
    attentions = _attentions(fields, deepseek, count + drafts)
    shapes = list(zip(attentions.owns_indexer, has_experts, strict=True))
    made = {
        shape: _layer(fields, deepseek, attentions.by_indexer[shape[0]], shape[1]) for shape in set(shapes)
    }
    visited = fields.size("num_experts_per_tok") if experts else 0
    return assemble(
        untied(fields),
        Body(
            layers=[made[shape] for shape in shapes[:count]],
            draft_layers=[_draft(fields, made[shape]) for shape in shapes[count:]],
            intermediate_size=max(
                0 if all(has_experts) else fields.size("intermediate_size"),
                visited * fields.size("moe_intermediate_size") if experts else 0,
            ),
            attention_heads=fields.size("num_attention_heads"),
            rope_size=attentions.rope_size,
            experts=experts,
            experts_per_token=visited,
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attentions:
    """The attention of every layer, drafts included; it comes with an indexer of its own or without."""

    owns_indexer: tuple[bool, ...]
    by_indexer: Mapping[bool, tuple[tuple[Cache, ...], tuple[Matrix, ...]]]
    rope_size: int
    """16-bit elements that a position has in the rotary tables."""


def _attentions(fields: Fields, deepseek: Deepseek, count: int) -> _Attentions:
    hidden = fields.size("hidden_size")
    if deepseek.is_plain or _has_no_latent(fields):
        plain = read_heads(fields)
        return _Attentions(
            owns_indexer=(False,) * count,
            by_indexer={False: ((plain.cache(),), attention(hidden, plain))},
            rope_size=plain.head_size,
        )
    latent = read_latent(fields, is_sparse=deepseek.is_sparse)
    owns_indexer = _owns_indexer(fields, count) if latent.indexer else (False,) * count
    return _Attentions(
        owns_indexer=owns_indexer,
        by_indexer={
            owns: (latent.caches(has_indexer=owns), latent.matrices(hidden, has_indexer=owns))
            for owns in set(owns_indexer)
        },
        rope_size=latent.rope_size * _rotary_tables(fields, deepseek),
    )


def _layer(
    fields: Fields,
    deepseek: Deepseek,
    attention_parts: tuple[tuple[Cache, ...], tuple[Matrix, ...]],
    is_mixture: bool,
) -> Layer:
    hidden, (caches, matrices) = fields.size("hidden_size"), attention_parts
    is_normed = deepseek.mlp_norms_key is None or fields.flag(deepseek.mlp_norms_key)
    feed = _mixture(fields, deepseek) if is_mixture else gated_mlp(hidden, fields.size("intermediate_size"))
    return Layer(
        caches=caches,
        matrices=(
            norm("input_layernorm", hidden),
            *matrices,
            norm("post_attention_layernorm", hidden),
            *feed,
            *(norm(name, hidden) for name in deepseek.mlp_norms if is_normed),
        ),
    )


def _has_no_latent(fields: Fields) -> bool:
    """Source: use_mha of DeepseekV2DecoderLayer (DeepSeek-OCR's decoder)."""
    keys = ("qk_nope_head_dim", "qk_rope_head_dim")
    return all(key in fields.values and stated_size(fields, key) == 0 for key in keys)


def _mixture_layers(fields: Fields, count: int) -> tuple[bool, ...]:
    first = fields.size("first_k_dense_replace", least=0)
    every = fields.size("moe_layer_freq", default=1)
    return tuple(index >= first and index % every == 0 for index in range(count))


def _owns_indexer(fields: Fields, count: int) -> tuple[bool, ...]:
    """Which layers choose tokens themselves; the others use the choice of the last that did (GLM-5.2).

    Draft layers always choose. Source: skip_topk in deepseek_v32/attention.py.
    """
    decoders = layer_count(fields)
    if isinstance(fields.values.get("index_topk_pattern"), str):
        pattern: tuple[str, ...] | None = tuple(fields.word("index_topk_pattern"))
    else:
        pattern = fields.words("index_topk_pattern") if fields.has("index_topk_pattern") else None
    every = fields.size("index_topk_freq", default=1)
    offset = fields.size("index_skip_topk_offset", default=2, least=0)
    return tuple(
        index >= decoders
        or (
            max(index - offset + 1, 0) % every == 0
            if pattern is None
            else pattern[index : index + 1] != ("S",)
        )
        for index in range(count)
    )


def _rotary_tables(fields: Fields, deepseek: Deepseek) -> int:
    """16-bit tables that the rotary embeddings amount to.

    The indexer has one of its own unless both interleave alike; YaRN's stay in float32 beside it.
    """
    if not deepseek.is_sparse:
        return 1
    rope = fields.inner("rope_scaling" if fields.has("rope_scaling") else "rope_parameters")
    kind = rope.word("rope_type", default=rope.word("type", default="default"))
    return (1 if fields.flag("indexer_rope_interleave") else 2) * (1 if kind == "default" else 2)


def _mixture(fields: Fields, deepseek: Deepseek) -> tuple[Matrix, ...]:
    """Router, its correction bias, routed experts, and the shared experts as one wide MLP."""
    hidden, width = fields.size("hidden_size"), fields.size("moe_intermediate_size")
    experts, shared = fields.size("n_routed_experts"), stated_size(fields, "n_shared_experts")
    bias: tuple[Matrix, ...] = ()
    if deepseek.has_correction(fields):
        bias = (norm("mlp.gate.e_score_correction_bias", experts, element_bytes=4),)
    return (
        router(hidden, experts, element_bytes=deepseek.router_bytes),
        *bias,
        *gated_experts(hidden, width, experts),
        *(gated_mlp(hidden, shared * width, name="mlp.shared_experts") if shared else ()),
    )


def _draft(fields: Fields, layer: Layer) -> Layer:
    """A layer that joins the next token's embedding to the hidden state. Embedding and head are shared."""
    hidden = fields.size("hidden_size")
    joins = (
        norm("enorm", hidden),
        norm("hnorm", hidden),
        *linear("eh_proj", hidden, 2 * hidden, "none", quantised=False),
        norm("shared_head.norm", hidden),
    )
    return Layer(caches=layer.caches, matrices=(*joins, *layer.matrices))


READERS: Final[Mapping[str, Callable[[Fields], ModelSpec]]] = {
    architecture: lambda fields, deepseek=deepseek: read_deepseek(fields, deepseek)  # type: ignore[misc]
    for architecture, deepseek in DEEPSEEK.items()
}
