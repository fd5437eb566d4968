"""Kimi-VL and Kimi-K2.5: a DeepSeek decoder behind a MoonViT tower and a projector that merges patches.

Source: vLLM 0.32 model_executor/models/{kimi_vl,moonvit,kimi_k25,kimi_k25_vit}.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from estimator.families.deepseek import read_deepseek
from estimator.families.parts import linear, norm
from estimator.fields import LAYERS_MAX, Fields
from estimator.model import Matrix, ModelSpec
from estimator.spec import UnsupportedModel

PROJECTOR_KIND: Final = "patchmerger"
PATCH_SIDE_MAX: Final = 65_536


PROJECTORS: Final[Mapping[str, str]] = {
    "KimiVLForConditionalGeneration": "multi_modal_projector",
    "KimiK25ForConditionalGeneration": "mm_projector",
}
"""What each calls the module between tower and decoder."""


def read_kimi_vision(fields: Fields, name: str) -> ModelSpec:
    """Raises UnsupportedModel for a projector that these models do not have."""
    spec = read_deepseek(fields)
    vision = Fields(fields.outer, fields.outer, fields.name).inner("vision_config")
    kind = vision.word("mm_projector_type", default=PROJECTOR_KIND)
    if kind != PROJECTOR_KIND:
        raise UnsupportedModel(f"not yet supported: mm_projector_type {kind!r}; known is {PROJECTOR_KIND!r}")
    vision_matrices = (*_encoder(vision), *_projector(vision, name, spec.hidden_size))
    return replace(spec, before=(*spec.before, *vision_matrices))


def _encoder(vision: Fields) -> tuple[Matrix, ...]:
    """Blocks of attention and a two-layer MLP with biases, divided where tp divides the heads."""
    hidden, inner, heads = (
        vision.size(f"vt_{key}", key) for key in ("hidden_size", "intermediate_size", "num_attention_heads")
    )
    count = vision.size("vt_num_hidden_layers", "num_hidden_layers", most=LAYERS_MAX)
    name = "vision_tower.encoder.blocks"
    block = (
        *_layer_norm(f"{name}.norm0", hidden),
        *_layer_norm(f"{name}.norm1", hidden),
        *linear(f"{name}.wqkv", (hidden,) * 3, hidden, "output", bias=True, quantised=False),
        *linear(f"{name}.wo", hidden, hidden, "input", bias=True, quantised=False),
        *linear(f"{name}.mlp.fc0", inner, hidden, "output", bias=True, quantised=False),
        *linear(f"{name}.mlp.fc1", hidden, inner, "input", bias=True, quantised=False),
    )
    patch = 3 * vision.size("patch_size", most=PATCH_SIDE_MAX) ** 2
    positions = vision.size("init_pos_emb_height", most=PATCH_SIDE_MAX) * vision.size(
        "init_pos_emb_width", most=PATCH_SIDE_MAX
    )
    name = "vision_tower.patch_embed"
    return (
        *linear(f"{name}.proj", hidden, patch, "none", bias=True, quantised=False),
        *linear(f"{name}.pos_emb", positions, hidden, "none", quantised=False),
        *tuple(replace(matrix, heads=heads) for matrix in block) * count,
        *_layer_norm("vision_tower.encoder.final_layernorm", hidden),
    )


def _projector(vision: Fields, name: str, out: int) -> tuple[Matrix, ...]:
    rows, columns = (*vision.sizes("merge_kernel_size", least=1, most=64), 1, 1)[:2]
    hidden = vision.size("vt_hidden_size", "hidden_size")
    merged = hidden * rows * columns
    return (
        *_layer_norm(f"{name}.pre_norm", hidden),
        *linear(f"{name}.linear_1", merged, merged, "none", bias=True, quantised=False),
        *linear(f"{name}.linear_2", out, merged, "none", bias=True, quantised=False),
    )


def _layer_norm(name: str, size: int) -> tuple[Matrix, ...]:
    return norm(name, size), norm(f"{name}.bias", size)


READERS: Final[Mapping[str, Callable[[Fields], ModelSpec]]] = {
    architecture: lambda fields, name=name: read_kimi_vision(fields, name)  # type: ignore[misc]
    for architecture, name in PROJECTORS.items()
}
