"""The vision towers of Gemma 3 and 4, Mistral 3 and Llama 4, with what joins them to the decoder: no cache.

Source: vLLM 0.32 model_executor/models/{siglip,gemma3_mm,gemma4_mm,pixtral,mistral3,mllama4}.py and, for
Gemma 4's tower, models/gemma4/modeling_gemma4.py of Transformers, whose class vLLM takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from estimator.families.layer_types import with_defaults
from estimator.families.parts import gated_mlp, linear, norm
from estimator.fields import LAYERS_MAX, Fields
from estimator.model import Matrix
from estimator.spec import SpecError

SIDE_MAX: Final = 100_000
SIGLIP: Final = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 16,
}
GEMMA4: Final = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 16,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "head_dim": 64,
    "patch_size": 16,
    "position_embedding_size": 10_240,
}
GEMMA4_AUDIO: Final = {
    "hidden_size": 1024,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "subsampling_conv_channels": [128, 32],
    "conv_kernel_size": 5,
    "output_proj_dims": 1536,
}
AUDIO_TAPS: Final = 3 * 3
PIXTRAL: Final = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_channels": 3,
    "patch_size": 16,
}
LLAMA4: Final = {
    "hidden_size": 768,
    "intermediate_size": 5632,
    "num_hidden_layers": 34,
    "num_channels": 3,
    "image_size": 448,
    "patch_size": 14,
    "vision_output_dim": 7680,
    "projector_input_dim": 4096,
    "projector_output_dim": 4096,
}


def layer_norm(name: str, size: int) -> tuple[Matrix, Matrix]:
    return norm(name, size), norm(f"{name}.bias", size)


def table(name: str, rows: int, columns: int) -> Matrix:
    """An embedding that every rank keeps whole."""
    return linear(name, rows, columns, "none", quantised=False)[0]


def vision_fields(fields: Fields, defaults: Mapping[str, Any]) -> Fields:
    """The fields of vision_config; where the config has none, its class takes the defaults alone."""
    outer = Fields(fields.outer, fields.outer, fields.name)
    return with_defaults(outer.inner("vision_config"), defaults)


def siglip_tower(fields: Fields) -> tuple[Matrix, ...]:
    """A SigLIP encoder, a norm and a matrix from its width to the decoder's (Gemma 3)."""
    vision = vision_fields(fields, SIGLIP)
    hidden, wide = vision.size("hidden_size"), vision.size("intermediate_size")
    name = "vision_tower.vision_model.encoder.layers"
    layer = (
        *layer_norm(f"{name}.layer_norm1", hidden),
        *linear(f"{name}.self_attn.qkv_proj", (hidden,) * 3, hidden, "output", bias=True),
        *linear(f"{name}.self_attn.out_proj", hidden, hidden, "input", bias=True),
        *layer_norm(f"{name}.layer_norm2", hidden),
        *linear(f"{name}.mlp.fc1", wide, hidden, "output", bias=True),
        *linear(f"{name}.mlp.fc2", hidden, wide, "input", bias=True),
    )
    name = "vision_tower.vision_model"
    return (
        *linear(
            f"{name}.embeddings.patch_embedding", hidden, _patch(vision), "none", bias=True, quantised=False
        ),
        table(f"{name}.embeddings.position_embedding", _patches(vision), hidden),
        *layer * vision.size("num_hidden_layers", most=LAYERS_MAX),
        *layer_norm(f"{name}.post_layernorm", hidden),
        table("multi_modal_projector.mm_input_projection_weight", hidden, fields.size("hidden_size")),
        norm("multi_modal_projector.mm_soft_emb_norm", hidden),
    )


def gemma4_tower(fields: Fields) -> tuple[Matrix, ...]:
    """Gemma 4's own encoders and the projections to the decoder; whole on every rank, never quantised."""
    vision = vision_fields(fields, GEMMA4)
    hidden, wide = vision.size("hidden_size"), vision.size("intermediate_size")
    heads, kv_heads = vision.size("num_attention_heads"), vision.size("num_key_value_heads")
    head_size = vision.size("head_dim")
    name = "vision_tower.encoder.layers"
    layer = (
        *(norm(f"{name}.norm", hidden),) * 4,
        *(norm(f"{name}.self_attn.qk_norm", head_size),) * 2,
        table(f"{name}.self_attn.q_proj", heads * head_size, hidden),
        *(table(f"{name}.self_attn.kv_proj", kv_heads * head_size, hidden),) * 2,
        table(f"{name}.self_attn.o_proj", hidden, heads * head_size),
        *(table(f"{name}.mlp", wide, hidden),) * 3,
    )
    return (
        table(
            "vision_tower.patch_embedder.input_proj",
            hidden,
            3 * vision.size("patch_size", most=SIDE_MAX) ** 2,
        ),
        table("vision_tower.patch_embedder.positions", 2 * vision.size("position_embedding_size"), hidden),
        *layer * vision.size("num_hidden_layers", most=LAYERS_MAX),
        table("embed_vision.embedding_projection", fields.size("hidden_size"), hidden),
        *(_gemma4_audio(fields) if fields.outer.get("audio_config") is not None else ()),
    )


def _gemma4_audio(fields: Fields) -> tuple[Matrix, ...]:
    """The audio encoder: two convolutions, then blocks of attention and convolution between two MLPs."""
    audio = with_defaults(Fields(fields.outer, fields.outer, fields.name).inner("audio_config"), GEMMA4_AUDIO)
    hidden, heads = audio.size("hidden_size"), audio.size("num_attention_heads")
    outer, inner, *_ = (*audio.sizes("subsampling_conv_channels", least=1), 1, 1)
    rows, taps, out = hidden // heads * heads, audio.size("conv_kernel_size"), audio.size("output_proj_dims")
    name = "audio_tower.layers"
    layer = (
        *(table(f"{name}.feed_forward", 4 * hidden, hidden),) * 4,
        *(table(f"{name}.self_attn.qkv_proj", rows, hidden),) * 4,  # and the relative positions'
        table(f"{name}.self_attn.post", hidden, hidden),
        norm(f"{name}.self_attn.per_dim_scale", hidden // heads),
        table(f"{name}.lconv1d.linear_start", 2 * hidden, hidden),
        table(f"{name}.lconv1d.linear_end", hidden, hidden),
        table(f"{name}.lconv1d.depthwise_conv1d", hidden, taps),
        *(norm(f"{name}.norm", hidden),) * 9,
    )
    name = "audio_tower.subsample_conv_projection"
    return (
        table(f"{name}.layer0.conv", outer, AUDIO_TAPS),
        norm(f"{name}.layer0.norm", outer),
        table(f"{name}.layer1.conv", inner, AUDIO_TAPS * outer),
        norm(f"{name}.layer1.norm", inner),
        table(f"{name}.input_proj_linear", hidden, max(1, outer // 4) * inner),
        *layer * audio.size("num_hidden_layers", most=LAYERS_MAX),
        *linear("audio_tower.output_proj", out, hidden, "none", bias=True, quantised=False),
        table("embed_audio.embedding_projection", fields.size("hidden_size"), out),
    )


def pixtral_tower(fields: Fields) -> tuple[Matrix, ...]:
    """A Pixtral encoder, the merger of neighbouring patches and the projection to the decoder (Mistral 3)."""
    vision, outer = vision_fields(fields, PIXTRAL), Fields(fields.outer, fields.outer, fields.name)
    hidden, text = vision.size("hidden_size"), fields.size("hidden_size")
    name = "vision_tower.transformer.layers"
    layer = (
        norm(f"{name}.attention_norm", hidden),
        *linear(f"{name}.attention.qkv_proj", (hidden,) * 3, hidden, "output"),
        *linear(f"{name}.attention.o_proj", hidden, hidden, "input"),
        *gated_mlp(hidden, vision.size("intermediate_size"), name=f"{name}.feed_forward"),
        norm(f"{name}.ffn_norm", hidden),
    )
    merged = hidden * outer.size("spatial_merge_size", default=2, most=64) ** 2
    bias = outer.flag("multimodal_projector_bias")
    name = "multi_modal_projector"
    return (
        table("vision_tower.patch_conv", hidden, _patch(vision)),
        norm("vision_tower.ln_pre", hidden),
        *layer * vision.size("num_hidden_layers", most=LAYERS_MAX),
        norm(f"{name}.norm", hidden),
        table(f"{name}.patch_merger.merging_layer", hidden, merged),
        *linear(f"{name}.linear_1", text, hidden, "output", bias=bias),
        *linear(f"{name}.linear_2", text, text, "input", bias=bias),
    )


def llama4_tower(fields: Fields) -> tuple[Matrix, ...]:
    """Llama 4's encoder, the pixel shuffle's two matrices and the projection to the decoder."""
    vision = vision_fields(fields, LLAMA4)
    hidden, wide = vision.size("hidden_size"), vision.size("intermediate_size")
    name = "vision_model.model.layers"
    layer = (
        *layer_norm(f"{name}.input_layernorm", hidden),
        *linear(f"{name}.self_attn.qkv_proj", (hidden,) * 3, hidden, "output", bias=True),
        *linear(f"{name}.self_attn.o_proj", hidden, hidden, "input", bias=True),
        *layer_norm(f"{name}.post_attention_layernorm", hidden),
        *linear(f"{name}.mlp.fc1", wide, hidden, "output", bias=True),
        *linear(f"{name}.mlp.fc2", hidden, wide, "input", bias=True),
    )
    inner, out = vision.size("projector_input_dim"), vision.size("projector_output_dim")
    bias = vision.flag("multi_modal_projector_bias")
    return (
        *linear("vision_model.patch_embedding.linear", hidden, _patch(vision), "output"),
        norm("vision_model.class_embedding", hidden),
        table("vision_model.positional_embedding_vlm", _patches(vision) + 1, hidden),
        *layer_norm("vision_model.layernorm_pre", hidden),
        *layer * vision.size("num_hidden_layers", most=LAYERS_MAX),
        *layer_norm("vision_model.layernorm_post", hidden),
        *linear("vision_model.vision_adapter.mlp.fc1", inner, wide, "output", bias=bias),
        *linear("vision_model.vision_adapter.mlp.fc2", out, inner, "input", bias=bias),
        *linear(
            "multi_modal_projector.linear_1",
            fields.size("hidden_size"),
            vision.size("vision_output_dim"),
            "output",
        ),
    )


def _patch(vision: Fields) -> int:
    """Values of one patch of an image."""
    return vision.size("num_channels", most=SIDE_MAX) * vision.size("patch_size", most=SIDE_MAX) ** 2


def _patches(vision: Fields) -> int:
    """Patches of one image. Raises SpecError where the image is smaller than a patch."""
    image, patch = vision.size("image_size", most=SIDE_MAX), vision.size("patch_size", most=SIDE_MAX)
    if image < patch:
        raise SpecError(f"image_size must be at least patch_size {patch}, got {image}")
    return (image // patch) ** 2
