"""A model's config.json -> ModelSpec: finds the file, reads it with care, hands it to its family's reader.

A config.json comes from anywhere, so every value is checked and bounded. An architecture whose cache
is not known to the byte is refused by name: no number is better than a wrong one.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from estimator.fields import Config, Fields, fields_of
from estimator.model import ModelSpec
from estimator.spec import SpecError

CONFIG_BYTES_MAX: Final = 10_000_000
CONFIG_FILE: Final = "config.json"
QUANT_FILE: Final = "hf_quant_config.json"
"""ModelOpt's, beside config.json; with the same words before both names, too."""
Reader = Callable[[Fields], ModelSpec]
FAMILIES: Final[Mapping[str, tuple[str, ...]]] = {
    "dense": (
        "LlamaForCausalLM",
        "MiMoForCausalLM",
        "MistralForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen3ForCausalLM",
    ),
    "sparse": (
        "Glm4MoeForCausalLM",
        "MiniMaxM2ForCausalLM",
        "MiniMaxM3ForCausalLM",
        "MiniMaxM3SparseForCausalLM",
        "MiniMaxM3SparseForConditionalGeneration",
        "MixtralForCausalLM",
        "OlmoeForCausalLM",
        "Qwen2MoeForCausalLM",
        "Qwen3MoeForCausalLM",
    ),
    "qwen_vision": (
        "Qwen3VLForConditionalGeneration",
        "Qwen3VLMoeForConditionalGeneration",
    ),
    "pruned": ("DeciLMForCausalLM",),
    "latent": (
        "AXK1ForCausalLM",
        "DeepseekForCausalLM",
        "DeepseekV2ForCausalLM",
        "DeepseekV32ForCausalLM",
        "DeepseekV3ForCausalLM",
        "DeepseekV4ForCausalLM",
        "Glm4MoeLiteForCausalLM",
        "GlmMoeDsaForCausalLM",
        "KimiK25ForConditionalGeneration",
        "KimiVLForConditionalGeneration",
        "LongcatFlashForCausalLM",
        "MistralLarge3ForCausalLM",
        "PanguUltraMoEForCausalLM",
    ),
    "hybrid": (
        "BailingMoeV2_5ForCausalLM",
        "BailingMoeV3ForCausalLM",
        "BambaForCausalLM",
        "FalconH1ForCausalLM",
        "FalconMambaForCausalLM",
        "GraniteMoeHybridForCausalLM",
        "JambaForCausalLM",
        "KimiK3ForConditionalGeneration",
        "KimiLinearForCausalLM",
        "Lfm2ForCausalLM",
        "Lfm2MoeForCausalLM",
        "Lfm2VlForConditionalGeneration",
        "Mamba2ForCausalLM",
        "MambaForCausalLM",
        "MiniMaxM1ForCausalLM",
        "MiniMaxText01ForCausalLM",
        "NemotronHForCausalLM",
        "NemotronHPuzzleForCausalLM",
        "NemotronH_Nano_VL_V2",
        "OlmoHybridForCausalLM",
        "Plamo2ForCausalLM",
        "Qwen3NextForCausalLM",
        "Qwen3_5ForCausalLM",
        "Qwen3_5ForConditionalGeneration",
        "Qwen3_5MoeForCausalLM",
        "Qwen3_5MoeForConditionalGeneration",
        "Zamba2ForCausalLM",
    ),
    "windowed": (
        "Cohere2ForCausalLM",
        "Exaone4ForCausalLM",
        "Gemma2ForCausalLM",
        "Gemma3ForCausalLM",
        "Gemma3ForConditionalGeneration",
        "Gemma3nForCausalLM",
        "Gemma3nForConditionalGeneration",
        "Gemma4ForCausalLM",
        "Gemma4ForConditionalGeneration",
        "GptOssForCausalLM",
        "Llama4ForCausalLM",
        "Llama4ForConditionalGeneration",
        "MiMoV2FlashForCausalLM",
        "MiMoV2ForCausalLM",
        "Ministral3ForCausalLM",
        "MinistralForCausalLM",
        "Mistral3ForConditionalGeneration",
        "Olmo3ForCausalLM",
        "Phi3ForCausalLM",
        "Starcoder2ForCausalLM",
        "Step3p5ForCausalLM",
        "WhisperForConditionalGeneration",
    ),
}
"""Module of families/ -> the architectures it reads, the name that vLLM itself dispatches on.

A module is imported only when a model of its family is read: start-up stays short.
"""
_MODULE_OF: Final = {name: module for module, names in FAMILIES.items() for name in names}


def read_model(path: Path) -> ModelSpec:
    """ModelSpec of a config.json, of a model folder that holds one, or of a file of the catalog.

    Raises SpecError when it cannot be read, UnsupportedModel when we cannot count it.
    """
    file = path / "config.json" if path.is_dir() else path
    name = file.resolve().parent.name if file.name == "config.json" else file.stem
    config = _read_json(file)
    quant_file = file.with_name(file.name.removesuffix(CONFIG_FILE) + QUANT_FILE)
    if file.name.endswith(CONFIG_FILE) and quant_file.exists():
        config = with_quantisation_file(config, _read_json(quant_file))
    return model_spec(config, name)


def with_quantisation_file(config: Config, quant: Config) -> Config:
    """ModelOpt writes a file of its own; vLLM reads it where config.json names no quantization_config."""
    return config if config.get("quantization_config") else {**config, "quantization_config": quant}


def model_spec(config: Config, name: str) -> ModelSpec:
    """Raises SpecError when a key is missing or absurd, UnsupportedModel when we cannot count the model."""
    if not isinstance(config.get("model_type"), str):
        raise SpecError("the config names no model_type; give the config.json of a Hugging Face model")
    architectures = config.get("architectures")
    architecture = architectures[0] if isinstance(architectures, list) and architectures else None
    if not isinstance(architecture, str):
        raise SpecError("the config names no architectures; give the config.json of a Hugging Face model")
    return reader_of(architecture)(fields_of(config, name))


def reader_of(architecture: str) -> Reader:
    """The reader of its family; of one nobody told us about, the generic reader, which may refuse it."""
    module = _MODULE_OF.get(architecture, "generic")
    family = importlib.import_module(f"estimator.families.{module}")
    reader: Reader = family.read_generic if module == "generic" else family.READERS[architecture]
    return reader


def _read_json(file: Path) -> Config:
    try:
        with file.open("rb") as stream:
            text = stream.read(CONFIG_BYTES_MAX + 1)
    except OSError as error:
        raise SpecError(f"cannot read {file}: {error.strerror or error}") from None
    if len(text) > CONFIG_BYTES_MAX:
        raise SpecError(f"{file} is larger than {CONFIG_BYTES_MAX:,} bytes, which no config.json is")
    try:
        config = json.loads(text)
    except (ValueError, RecursionError):
        raise SpecError(f"{file} is not JSON; give a model's config.json or the folder it is in") from None
    if not isinstance(config, dict):
        raise SpecError(f"{file} holds no JSON object; give a model's config.json or the folder it is in")
    return config
