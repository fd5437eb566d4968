"""The vision tower of Qwen-VL models, and the models that put one before a Qwen decoder.

A tower adds weights and caches nothing. Source: vLLM 0.32 model_executor/models/qwen3_vl.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from estimator.families.dense import DENSE, read_dense
from estimator.families.parts import linear, norm
from estimator.families.sparse import SPARSE, read_sparse
from estimator.fields import LAYERS_MAX, Fields
from estimator.model import Matrix, ModelSpec


def qwen3_tower(fields: Fields) -> tuple[Matrix, ...]:
    """Patch embedding, positions, blocks and mergers (deepstack ones too) of a Qwen3-VL tower."""
    vision = Fields(fields.outer, fields.outer, fields.name).inner("vision_config")
    hidden, mlp = vision.size("hidden_size"), vision.size("intermediate_size")
    merged = hidden * vision.size("spatial_merge_size", default=2, most=64) ** 2
    out = vision.size("out_hidden_size")
    patch = (
        vision.size("in_channels", default=3, most=1024)
        * vision.size("temporal_patch_size", default=2, most=1024)
        * vision.size("patch_size", default=16, most=1024) ** 2
    )
    block = (
        *_layer_norm("visual.blocks.norm1", hidden),
        *_layer_norm("visual.blocks.norm2", hidden),
        *linear("visual.blocks.attn.qkv", (hidden,) * 3, hidden, "output", bias=True),
        *linear("visual.blocks.attn.proj", hidden, hidden, "input", bias=True),
        *linear("visual.blocks.mlp.linear_fc1", mlp, hidden, "output", bias=True),
        *linear("visual.blocks.mlp.linear_fc2", hidden, mlp, "input", bias=True),
    )
    deep = len(vision.sizes("deepstack_visual_indexes"))
    return (
        *linear("visual.patch_embed.proj", hidden, patch, "none", bias=True, quantised=False),
        *linear("visual.pos_embed", vision.size("num_position_embeddings"), hidden, "none", quantised=False),
        *_merger("visual.merger", hidden, merged, out),
        *_merger("visual.deepstack_merger_list", merged, merged, out) * deep,
        *block * vision.size("depth", most=LAYERS_MAX),
    )


def _merger(name: str, norm_size: int, merged: int, out: int) -> tuple[Matrix, ...]:
    return (
        *_layer_norm(f"{name}.norm", norm_size),
        *linear(f"{name}.linear_fc1", merged, merged, "output", bias=True),
        *linear(f"{name}.linear_fc2", out, merged, "input", bias=True),
    )


def _layer_norm(name: str, size: int) -> tuple[Matrix, ...]:
    return norm(f"{name}.weight", size), norm(f"{name}.bias", size)


def with_tower(spec: ModelSpec, tower: tuple[Matrix, ...]) -> ModelSpec:
    return replace(spec, before=(*spec.before, *tower))


def _read_qwen3_vl(fields: Fields) -> ModelSpec:
    return with_tower(read_dense(fields, DENSE["Qwen3ForCausalLM"]), qwen3_tower(fields))


def _read_qwen3_vl_moe(fields: Fields) -> ModelSpec:
    return with_tower(read_sparse(fields, SPARSE["Qwen3MoeForCausalLM"]), qwen3_tower(fields))


READERS: Final[Mapping[str, Callable[[Fields], ModelSpec]]] = {
    "Qwen3VLForConditionalGeneration": _read_qwen3_vl,
    "Qwen3VLMoeForConditionalGeneration": _read_qwen3_vl_moe,
}
