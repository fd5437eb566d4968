"""Which models and weight formats each engine of LMDeploy 0.18 loads; the others are refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from estimator.engine_spec import LmdeployBackend
from estimator.lmdeploy.defaults import VERSION
from estimator.model import ModelSpec, Quantisation
from estimator.quantisation import PLAIN
from estimator.spec import UnsupportedModel


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


TURBOMIND: Final = _names(
    """
    Qwen2ForCausalLM Qwen2MoeForCausalLM Qwen2VLForConditionalGeneration Qwen2_5_VLForConditionalGeneration
    Qwen3ForCausalLM Qwen3MoeForCausalLM Qwen3_5ForConditionalGeneration Qwen3_5MoeForConditionalGeneration
    InternS2PreviewForConditionalGeneration InternVLChatModel InternVLForConditionalGeneration
    InternS1ForConditionalGeneration LlamaForCausalLM InternLM2ForCausalLM InternLM3ForCausalLM
    Glm4MoeLiteForCausalLM GptOssForCausalLM MixtralForCausalLM
    """
)
"""turbomind/supported_models.py, without those whose cache is not known here."""

PYTORCH: Final = _names(
    """
    ChatGLMForConditionalGeneration DeepseekForCausalLM DeepseekV2ForCausalLM DeepseekV3ForCausalLM
    DeepseekV32ForCausalLM Gemma2ForCausalLM Gemma3ForCausalLM Gemma3ForConditionalGeneration
    GemmaForCausalLM Glm4ForCausalLM Glm4MoeForCausalLM Glm4MoeLiteForCausalLM
    Glm4vForConditionalGeneration GlmMoeDsaForCausalLM GptOssForCausalLM HYV3ForCausalLM
    InternLM2ForCausalLM InternLM3ForCausalLM InternLMForCausalLM InternS1ForConditionalGeneration
    InternS2PreviewForConditionalGeneration InternVLChatModel InternVLForConditionalGeneration
    KimiK25ForConditionalGeneration Llama4ForConditionalGeneration LlamaForCausalLM
    LlavaForConditionalGeneration MistralForCausalLM MixtralForCausalLM Phi3ForCausalLM Phi3VForCausalLM
    PhiMoEForCausalLM Qwen2ForCausalLM Qwen2MoeForCausalLM Qwen2VLForConditionalGeneration
    Qwen2_5_VLForConditionalGeneration Qwen3ForCausalLM Qwen3MoeForCausalLM Qwen3NextForCausalLM
    Qwen3VLForConditionalGeneration Qwen3VLMoeForConditionalGeneration Qwen3_5ForConditionalGeneration
    Qwen3_5MoeForConditionalGeneration SDARForCausalLM SDARMoeForCausalLM Starcoder2ForCausalLM
    """
)
"""pytorch/models/module_map.py, without draft and reward models and those whose cache is not known here."""

ENGINES: Final[Mapping[LmdeployBackend, tuple[str, frozenset[str]]]] = {
    "turbomind": ("TurboMind", TURBOMIND),
    "pytorch": ("the PyTorch engine", PYTORCH),
}
GROUPS: Final[Mapping[LmdeployBackend, Mapping[str, tuple[int, ...]]]] = {
    "turbomind": {
        "awq-int4": (128,),
        "gptq-int4": (128,),
        "int4-packed": (32, 128),
        "int4-packed-zeros": (32, 128),
        "fp8-block": (128,),
        "mxfp4": (),
    },
    "pytorch": {
        "awq-int4": (),
        "int4-packed": (),
        "int4-packed-zeros": (),
        "fp8-block": (),
        "fp8-tensor-static": (),
    },
}
"""Schemes loaded, with the group sizes allowed (empty: any). Source: turbomind/converter.py
(_SUPPORTED_GROUP_SIZES), pytorch/config.py (QuantizationConfig.from_config)."""


def check_served(model: ModelSpec, backend: LmdeployBackend) -> None:
    """Raises UnsupportedModel for an architecture or a weight format the engine does not load."""
    name, served = ENGINES[backend]
    if model.architecture not in served:
        other: LmdeployBackend = "pytorch" if backend == "turbomind" else "turbomind"
        hint = f"; use --backend {other}" if model.architecture in ENGINES[other][1] else ""
        raise UnsupportedModel(f"{name} of LMDeploy {VERSION} does not serve {model.architecture}{hint}")
    if model.quantisation is not None:
        _check_weights(model.quantisation, backend, name)


def _check_weights(quantisation: Quantisation, backend: LmdeployBackend, name: str) -> None:
    allowed = GROUPS[backend]
    schemes = {quantisation.scheme, *(scheme for _, scheme in quantisation.schemes_by_module)} - {PLAIN}
    refused = sorted(schemes - allowed.keys())
    if refused:
        raise UnsupportedModel(
            f"{name} of LMDeploy {VERSION} does not load {refused[0]} weights; it loads 16-bit ones and "
            f"{', '.join(allowed)}"
        )
    sizes = allowed.get(quantisation.scheme, ())
    group = quantisation.group_size
    if sizes and group is not None and group not in sizes:
        raise UnsupportedModel(
            f"{name} of LMDeploy {VERSION} does not load {quantisation.scheme} weights of "
            f"group size {group}; only of {' or '.join(map(str, sizes))}"
        )
