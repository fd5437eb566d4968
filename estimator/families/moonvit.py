"""MoonViT as Kimi-K3 wears it: patches, encoder blocks without biases, a projector of two layers.

Source: vLLM 0.32 model_executor/models/kimi_k25_vit.py, transformers_utils/configs/kimi_k3.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from estimator.families.mixers import with_defaults
from estimator.families.parts import linear, norm
from estimator.fields import LAYERS_MAX, Fields
from estimator.model import Matrix
from estimator.spec import UnsupportedModel

DEFAULTS: Final[Mapping[str, Any]] = {
    "patch_size": 14,
    "init_pos_emb_height": 64,
    "init_pos_emb_width": 64,
    "vt_num_attention_heads": 12,
    "vt_num_hidden_layers": 27,
    "vt_hidden_size": 1024,
    "vt_intermediate_size": 4096,
    "qkv_hidden_size": 1536,
    "merge_kernel_size": [2, 2],
    "norm_type": "rmsnorm",
    "mlp_type": "mlp2",
    "mm_projector_type": "patchmergerv2",
}
"""What KimiK3VisionConfig fills in."""
KNOWN: Final = (("norm_type", "rmsnorm"), ("mlp_type", "mlp2"), ("mm_projector_type", "patchmergerv2"))


def k3_tower(fields: Fields) -> tuple[Matrix, ...]:
    """Raises UnsupportedModel for a norm, MLP or projector that Kimi-K3 does not have."""
    vision = with_defaults(Fields(fields.outer, fields.outer, fields.name).inner("vision_config"), DEFAULTS)
    for key, known in KNOWN:
        if vision.word(key) != known:
            raise UnsupportedModel(f"not yet supported: vision {key} {vision.word(key)!r}; known is {known}")
    hidden, mlp, inner, heads = (
        vision.size(key)
        for key in ("vt_hidden_size", "vt_intermediate_size", "qkv_hidden_size", "vt_num_attention_heads")
    )
    attention_bias, mlp_bias = vision.flag("attn_bias"), vision.flag("linear_bias")
    block = (
        norm("vision_tower.blocks.norm0", hidden),
        norm("vision_tower.blocks.norm1", hidden),
        *linear("vision_tower.blocks.wqkv", (inner,) * 3, hidden, "output", bias=attention_bias),
        *linear("vision_tower.blocks.wo", hidden, inner, "input", bias=attention_bias),
        *linear("vision_tower.blocks.mlp.fc0", mlp, hidden, "output", bias=mlp_bias),
        *linear("vision_tower.blocks.mlp.fc1", hidden, mlp, "input", bias=mlp_bias),
    )
    block = tuple(replace(matrix, heads=heads) for matrix in block)
    patch = 3 * vision.size("patch_size", most=1024) ** 2
    positions = vision.size("init_pos_emb_height", most=65_536) * vision.size(
        "init_pos_emb_width", most=65_536
    )
    return (
        *linear(
            "vision_tower.patch_embed.proj",
            hidden,
            patch,
            "none",
            bias=vision.flag("patch_embed_proj_bias"),
            quantised=False,
        ),
        *linear("vision_tower.patch_embed.pos_emb", positions, hidden, "none", quantised=False),
        *block * vision.size("vt_num_hidden_layers", most=LAYERS_MAX),
        norm("vision_tower.final_layernorm", hidden),
        *_projector(fields, vision),
    )


def _projector(fields: Fields, vision: Fields) -> tuple[Matrix, ...]:
    rows, columns = (*vision.sizes("merge_kernel_size", least=1, most=64), 1, 1)[:2]
    merged, out = vision.size("vt_hidden_size") * rows * columns, fields.size("hidden_size")
    return (
        *linear("mm_projector.linear_1", merged, merged, "none"),
        *linear("mm_projector.linear_2", out, merged, "none"),
        norm("mm_projector.post_norm", out),
    )
