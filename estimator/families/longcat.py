"""LongCat-Flash: each layer has two latent attentions, two dense MLPs and one mixture beside them.

Source: vLLM 0.32 model_executor/models/{longcat_flash,longcat_flash_mtp}.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from estimator.families.common import Body, assemble
from estimator.families.mla import Latent, read_latent, untied
from estimator.families.parts import gated_experts, gated_mlp, linear, norm, router
from estimator.fields import LAYERS_MAX, Fields
from estimator.model import Layer, Matrix, ModelSpec

PAIR: Final = (0, 1)
ROUTER_BYTES: Final = 4


def read_longcat(fields: Fields) -> ModelSpec:
    """A token visits `moe_topk` of the experts, the zero experts (which hold nothing) among them."""
    latent, hidden = read_latent(fields), fields.size("hidden_size")
    wide, visited = fields.size("ffn_hidden_size", "intermediate_size"), fields.size("moe_topk")
    kept_modules = fields.words("disable_quant_module")
    halves = tuple(matrix for index in PAIR for matrix in _half(latent, hidden, wide, index, kept_modules))
    layer = Layer(caches=latent.caches(has_indexer=False) * len(PAIR), matrices=(*halves, *_mixture(fields)))
    return assemble(
        untied(fields),
        Body(
            layers=(layer,) * fields.size("num_layers", "num_hidden_layers", most=LAYERS_MAX),
            draft_layers=(_draft(latent, hidden, wide),),
            intermediate_size=wide,
            attention_heads=latent.heads,
            rope_size=latent.rope_size,
            experts=fields.size("n_routed_experts"),
            experts_per_token=visited,
        ),
    )


def _half(latent: Latent, hidden: int, wide: int, index: int, kept: tuple[str, ...]) -> tuple[Matrix, ...]:
    """One attention and one MLP with their norms; a kind named in `kept` is not quantised."""
    attention = latent.matrices(hidden, has_indexer=False, name=f"self_attn.{index}")
    mlp = gated_mlp(hidden, wide, name=f"mlps.{index}", quantised="mlps" not in kept)
    if "self_attn" in kept:
        attention = tuple(replace(matrix, quantised=False) for matrix in attention)
    return (
        norm(f"input_layernorm.{index}", hidden),
        *attention,
        norm(f"post_attention_layernorm.{index}", hidden),
        *mlp,
    )


def _mixture(fields: Fields) -> tuple[Matrix, ...]:
    hidden, experts = fields.size("hidden_size"), fields.size("n_routed_experts")
    choices = experts + fields.size("zero_expert_num", least=0)
    width = fields.size("expert_ffn_hidden_size", "moe_intermediate_size")
    return (
        router(hidden, choices, name="mlp.router.classifier", element_bytes=ROUTER_BYTES),
        norm("mlp.router.e_score_correction_bias", choices, element_bytes=4),
        *gated_experts(hidden, width, experts),
    )


def _draft(latent: Latent, hidden: int, wide: int) -> Layer:
    """The one draft layer is dense: an attention and an MLP of the usual kind."""
    return Layer(
        caches=latent.caches(has_indexer=False),
        matrices=(
            norm("enorm", hidden),
            norm("hnorm", hidden),
            *linear("eh_proj", hidden, 2 * hidden, "none"),
            norm("input_layernorm", hidden),
            *latent.matrices(hidden, has_indexer=False),
            norm("post_attention_layernorm", hidden),
            *gated_mlp(hidden, wide),
            norm("final_layernorm", hidden),
        ),
    )


READERS: Final[Mapping[str, Callable[[Fields], ModelSpec]]] = {"LongcatFlashForCausalLM": read_longcat}
