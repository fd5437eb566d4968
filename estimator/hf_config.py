"""A model's config.json -> ModelSpec. The only file that knows Hugging Face's keys.

A config.json comes from anywhere, so every value is checked and bounded. An architecture whose cache
or weights are not known to the byte is refused by name: no number is better than a wrong one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from estimator.spec import CacheLayer, ModelSpec, SpecError, UnsupportedModel

CONFIG_BYTES_MAX: Final = 10_000_000
LAYERS_MAX: Final = 2_000
SIZE_MAX: Final = 100_000_000
"""Far above any model: a larger figure in a config.json is a mistake or an attack."""

Config = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What a model_type means where its config.json is silent. Source: vLLM 0.32 model_executor/models."""

    architecture: str
    attention_bias: bool | None = None
    """q, k and v carry a bias; None: as the key attention_bias says."""
    output_bias: bool = False
    """The output projection follows attention_bias too."""
    mlp_bias: bool = False
    """The key mlp_bias is honoured."""
    qk_norm: bool = False
    window_default: bool = False
    """A `sliding_window` counts although `use_sliding_window` is absent."""


FAMILIES: Final[Mapping[str, Family]] = {
    "llama": Family(architecture="LlamaForCausalLM", output_bias=True, mlp_bias=True, window_default=True),
    "mimo": Family(architecture="MiMoForCausalLM", attention_bias=True),
    "mistral": Family(
        architecture="MistralForCausalLM", output_bias=True, mlp_bias=True, window_default=True
    ),
    "qwen2": Family(architecture="Qwen2ForCausalLM", attention_bias=True),
    "qwen3": Family(architecture="Qwen3ForCausalLM", qk_norm=True),
}
"""Dense decoders with one KV cache of full attention: the layouts proven against vLLM's own answers."""

SEEN: Final = (
    ("kv_lora_rank", "multi-head latent attention"),
    ("compress_ratios", "compressed attention"),
    ("vision_config", "several modalities"),
    ("audio_config", "several modalities"),
    ("encoder_layers", "an encoder and cross attention"),
    ("attention_chunk_size", "chunked attention"),
    ("linear_num_key_heads", "linear-attention state"),
    ("linear_attn_config", "linear-attention state"),
    ("hybrid_override_pattern", "recurrent state beside attention"),
    ("hybrid_layer_pattern", "sliding-window attention"),
    ("mamba_num_heads", "recurrent state"),
    ("state_size", "recurrent state"),
    ("block_configs", "layers that differ from one another"),
    ("num_kv_shared_layers", "layers that share a KV cache"),
    ("num_experts", "mixture of experts"),
    ("num_local_experts", "mixture of experts"),
    ("n_routed_experts", "mixture of experts"),
)
"""Keys that betray what we cannot count yet, with the word a reader knows."""

WEIGHT_DTYPES: Final[Mapping[str, str]] = {
    "bfloat16": "bfloat16",
    "float16": "float16",
    "half": "float16",
    "float32": "bfloat16",  # vLLM and LMDeploy load float32 checkpoints in 16 bits
    "float": "bfloat16",
}
DECIDING_KEYS: Final = (
    *("quant_method", "weight_block_size", "activation_scheme", "kv_cache_scheme", "format"),
    *("num_bits", "type", "strategy", "group_size", "symmetric", "actorder"),
)
_INTEGERS: Final = {"quant_method": "compressed-tensors", "type": "int", "symmetric": "True"}
QUANTISATIONS: Final[Mapping[str, Mapping[str, str]]] = {
    "fp8-block128": {
        "quant_method": "fp8",
        "weight_block_size": "[128, 128]",
        "activation_scheme": "dynamic",
    },
    "int8-channel": {**_INTEGERS, "format": "int-quantized", "num_bits": "8", "strategy": "channel"},
    "int4-group128": {
        **_INTEGERS,
        "format": "pack-quantized",
        "num_bits": "4",
        "strategy": "group",
        "group_size": "128",
    },
}
"""The quantised layouts whose bytes are proven, each by exactly the facts that decide them."""
CONTEXT_KEYS: Final = ("max_position_embeddings", "model_max_length", "max_sequence_length", "seq_length")
UNSCALED_ROPE: Final = ("default", "llama3", "yarn")
"""Rope kinds whose max_position_embeddings is the served length already (vLLM 0.32 config/model.py)."""
SCALED_ROPE: Final = ("linear", "dynamic")


def read_model(path: Path) -> ModelSpec:
    """ModelSpec of a config.json, of a model folder that holds one, or of a file of the catalog.

    Raises SpecError when it cannot be read, UnsupportedModel when we cannot count it.
    """
    file = path / "config.json" if path.is_dir() else path
    name = file.resolve().parent.name if file.name == "config.json" else file.stem
    if (file.parent / "hf_quant_config.json").exists():
        raise UnsupportedModel("not yet supported: ModelOpt quantisation (hf_quant_config.json)")
    return model_spec(_read_json(file), name)


def model_spec(config: Config, name: str) -> ModelSpec:
    """Raises SpecError when a key is missing or absurd, UnsupportedModel when we cannot count the model."""
    family = _family(config)
    attention_heads = _size(config, "num_attention_heads")
    kv_heads = _size(config, "num_key_value_heads", default=attention_heads)
    hidden_size = _size(config, "hidden_size")
    head_size = _size(config, "head_dim", default=_head_size(hidden_size, attention_heads))
    if kv_heads > attention_heads or attention_heads % kv_heads != 0:
        raise SpecError(f"{name}: {attention_heads} attention heads do not share {kv_heads} KV heads evenly")
    follows_key = _flag(config, "attention_bias")
    layer = CacheLayer(kind="full", kv_heads=kv_heads, head_size=head_size, head_size_v=head_size)
    return ModelSpec(
        name=name,
        architecture=family.architecture,
        model_type=str(config["model_type"]),
        dtype=_dtype(config),
        quantisation=_quantisation(config),
        hidden_size=hidden_size,
        intermediate_size=_size(config, "intermediate_size"),
        vocab_size=_size(config, "vocab_size"),
        attention_heads=attention_heads,
        kv_heads=kv_heads,
        head_size=head_size,
        context_tokens_max=_context_tokens_max(config),
        tie_word_embeddings=_flag(config, "tie_word_embeddings"),
        attention_bias=follows_key if family.attention_bias is None else family.attention_bias,
        output_bias=family.output_bias and follows_key,
        mlp_bias=family.mlp_bias and _flag(config, "mlp_bias"),
        qk_norm=family.qk_norm,
        cache_layers=(layer,) * _size(config, "num_hidden_layers", most=LAYERS_MAX),
    )


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


def _family(config: Config) -> Family:
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise SpecError("the config names no model_type; give the config.json of a Hugging Face model")
    architectures = config.get("architectures")
    architecture = architectures[0] if isinstance(architectures, list) and architectures else None
    if not isinstance(architecture, str):
        raise SpecError("the config names no architectures; give the config.json of a Hugging Face model")
    family = FAMILIES.get(model_type)
    reasons = _reasons(config, family)
    if family is None or reasons:
        why = f" ({', '.join(reasons)})" if reasons else ""
        raise UnsupportedModel(f"not yet supported: model_type {model_type!r}{why}")
    if architecture != family.architecture:
        raise UnsupportedModel(
            f"not yet supported: architecture {architecture!r} of model_type {model_type!r}; "
            f"known is {family.architecture}"
        )
    return family


def _reasons(config: Config, family: Family | None) -> list[str]:
    """What in this config our cache layout would get wrong, in a reader's words, each once."""
    text_config = config.get("text_config")
    inner = text_config if isinstance(text_config, dict) else {}
    reasons = [words for key, words in SEEN if config.get(key) or inner.get(key)]
    layer_types = config.get("layer_types")
    if isinstance(layer_types, list):
        reasons += [f"{kind} layers" for kind in map(str, layer_types) if kind != "full_attention"]
    window_counts = config.get("use_sliding_window", family is None or family.window_default)
    if config.get("sliding_window") and window_counts:
        reasons.append("sliding-window attention")
    return list(dict.fromkeys(reasons))


def _size(config: Config, key: str, *, default: int | None = None, most: int = SIZE_MAX) -> int:
    value = config.get(key)
    if value is None:
        value = default
    if value is None:
        raise SpecError(f"the config has no {key}; give the model's full config.json")
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise SpecError(f"{key} must be a whole number from 1 to {most:,}, got {_shown(value)}")
    return value


def _head_size(hidden_size: int, attention_heads: int) -> int | None:
    return hidden_size // attention_heads if hidden_size % attention_heads == 0 else None


def _flag(config: Config, key: str) -> bool:
    value = config.get(key, False)
    if not isinstance(value, bool | None):
        raise SpecError(f"{key} must be true or false, got {_shown(value)}")
    return bool(value)


def _dtype(config: Config) -> str:
    named = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
    dtype = WEIGHT_DTYPES.get(str(named).removeprefix("torch."))
    if dtype is None:
        raise UnsupportedModel(f"not yet supported: weights of dtype {_shown(named)}")
    return dtype


def _context_tokens_max(config: Config) -> int:
    """Longest sequence served by default. Source: vLLM 0.32 config/model.py _get_and_verify_max_len."""
    tokens = min(_size(config, key) for key in CONTEXT_KEYS if key in config or key == CONTEXT_KEYS[0])
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise SpecError(f"rope_scaling must be an object, got {_shown(rope)}")
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind in UNSCALED_ROPE:
        return tokens
    if kind not in SCALED_ROPE:
        raise UnsupportedModel(f"not yet supported: rope_scaling of type {_shown(kind)}")
    factor = rope.get("factor")
    if not isinstance(factor, int | float) or isinstance(factor, bool) or not 1 <= factor <= 1024:
        raise SpecError(f"the factor of rope_scaling must be from 1 to 1024, got {_shown(factor)}")
    return int(tokens * factor)


def _quantisation(config: Config) -> str | None:
    """The name of a weight format in weights.FORMATS; None for 16-bit weights."""
    quantisation = config.get("quantization_config")
    if quantisation is None:
        return None
    if not isinstance(quantisation, dict):
        raise SpecError(f"quantization_config must be an object, got {_shown(quantisation)}")
    seen = _deciding_facts(quantisation)
    for weight_format, facts in QUANTISATIONS.items():
        if seen == facts:
            return weight_format
    raise UnsupportedModel(
        f"not yet supported: weights quantised by {_shown(quantisation.get('quant_method'))} in this layout"
    )


def _deciding_facts(quantisation: Config) -> dict[str, str]:
    """Everything that decides the bytes, flattened; a key that is absent or null says nothing."""
    groups = quantisation.get("config_groups")
    parts = list(groups.values()) if isinstance(groups, dict) else []
    weights = parts[0].get("weights") if len(parts) == 1 and isinstance(parts[0], dict) else None
    facts: dict[str, str] = {}
    for source in (quantisation, weights):
        if isinstance(source, dict):
            facts |= {key: str(source[key]) for key in DECIDING_KEYS if source.get(key) is not None}
    if parts and (weights is None or parts[0].get("targets") != ["Linear"]):
        facts["targets"] = "not all linear layers alike"
    kept = quantisation.get("ignore") or quantisation.get("modules_to_not_convert")
    if kept and kept != ["lm_head"]:
        facts["kept"] = "more than the output head"
    return facts


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
