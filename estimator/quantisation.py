"""A checkpoint's quantization_config -> Quantisation: which scheme, which modules stay as they are.

Source: from_config and get_quant_method of vLLM 0.32 model_executor/layers/quantization.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from estimator.fields import Fields, shown
from estimator.model import Quantisation
from estimator.spec import SpecError, UnsupportedModel

PLAIN: Final = "plain"
"""The scheme of modules that a mixed checkpoint leaves in the model's dtype."""
EXPERTS: Final = r"re:.*\bexperts$"
MODELOPT_SCHEMES: Final[Mapping[str, str]] = {
    "FP8": "fp8-tensor-static",
    "FP8_PER_CHANNEL_PER_TOKEN": "fp8-channel",
    "FP8_PB_WO": "fp8-block",
    "FP8_BLOCK_SCALES": "fp8-block",
    "NVFP4": "nvfp4",
    "W4A16_NVFP4": "nvfp4-a16-modelopt",
    "MXFP8": "mxfp8",
}
MODELOPT_TOWERS: Final = ("vision_tower", "vision_model", "vit_large_projector")
"""Never quantised, whatever the checkpoint lists (modelopt.py get_quant_method)."""
ENTRIES_MAX: Final = 200_000


def read_quantisation(fields: Fields) -> Quantisation | None:
    """None for 16-bit weights. Raises UnsupportedModel for a method whose bytes are not known."""
    found = next(
        (
            source["quantization_config"]
            for source in (fields.outer, fields.values)
            if source.get("quantization_config")
        ),
        None,
    )
    if found is None:
        return None
    if not isinstance(found, dict):
        raise SpecError(f"quantization_config must be an object, got {shown(found)}")
    config = Fields(found, fields.outer, fields.name)
    if "quantization" in found and not config.has("quant_method"):
        return _modelopt(config, fields)
    method = config.word("quant_method").lower()
    reader = METHODS.get(method)
    if reader is None:
        raise UnsupportedModel(
            f"not yet supported: quantization_config of quant_method {shown(method)}; "
            f"known are {', '.join(METHODS)}"
        )
    return reader(config, fields)


def _fp8(config: Fields, fields: Fields) -> Quantisation:
    kept = config.words("ignored_layers") or config.words("modules_to_not_convert")
    if not config.has("weight_block_size"):
        static = config.word("activation_scheme", default="dynamic") == "static"
        return Quantisation(method="fp8", scheme="fp8-tensor-static" if static else "fp8-tensor", kept=kept)
    block = _square(config, "weight_block_size")
    if fields.outer.get("model_type") == "deepseek_v4":
        return _deepseek_v4(config, fields, kept)
    return Quantisation(method="fp8", scheme="fp8-block", kept=kept, group_size=block)


def _square(fields: Fields, key: str) -> int:
    """Side of a block that is as high as wide."""
    sides = fields.sizes(key, least=1)
    if len(sides) != 2 or sides[0] != sides[1]:
        raise UnsupportedModel(f"not yet supported: {key} {shown(list(sides))}")
    return sides[0]


def _deepseek_v4(config: Fields, fields: Fields, kept: tuple[str, ...]) -> Quantisation:
    """Linear layers in fp8 blocks; the experts as expert_dtype says, and then the scales are 8 bits.

    Source: vLLM 0.32 models/deepseek_v4/quant_config.py.
    """
    if fields.word("expert_dtype", default="fp4") == "fp8":
        return Quantisation(method="deepseek_v4_fp8", scheme="fp8-block", kept=kept)
    is_nvfp4 = config.word("moe_quant_algo", default="").upper() == "NVFP4"
    return Quantisation(
        method="deepseek_v4_fp8",
        scheme="fp8-block-e8m0",
        kept=kept,
        schemes_by_module=((EXPERTS, "nvfp4" if is_nvfp4 else "mxfp4"),),
    )


def _mxfp4(config: Fields, fields: Fields) -> Quantisation:
    """Only the routed experts are quantised (mxfp4.py get_quant_method)."""
    return Quantisation(method="mxfp4", scheme=PLAIN, schemes_by_module=((EXPERTS, "mxfp4"),))


def _modelopt(config: Fields, fields: Fields) -> Quantisation:
    """ModelOpt's hf_quant_config.json, or the same inside config.json under other names."""
    legacy = config.has("quantization")
    inner = config.inner("quantization") if legacy else config
    algorithm = inner.word("quant_algo").upper()
    common: dict[str, Any] = {
        "kept": (*inner.words("exclude_modules" if legacy else "ignore"), *MODELOPT_TOWERS),
        "kv_cache_dtype": _modelopt_kv_cache(config, inner),
    }
    if algorithm != "MIXED_PRECISION":
        scheme = _modelopt_scheme(algorithm)
        if scheme == "nvfp4" and _weights_only(config):
            scheme = MODELOPT_SCHEMES["W4A16_NVFP4"]
        return Quantisation(method="modelopt", scheme=scheme, **common)
    layers = inner.inner("quantized_layers").values
    if not layers or len(layers) > ENTRIES_MAX:
        raise SpecError("quantized_layers must name the layers of a MIXED_PRECISION checkpoint")
    listed = tuple(
        (name, _modelopt_scheme(Fields(layer, {}, name).word("quant_algo").upper()))
        for name, layer in layers.items()
        if isinstance(layer, dict)
    )
    return Quantisation(method="modelopt_mixed", scheme=PLAIN, schemes_by_module=listed, **common)


def _modelopt_scheme(algorithm: str) -> str:
    scheme = MODELOPT_SCHEMES.get(algorithm)
    if scheme is None:
        raise UnsupportedModel(
            f"not yet supported: quant_algo {shown(algorithm)}; known are {', '.join(MODELOPT_SCHEMES)}"
        )
    return scheme


def _weights_only(config: Fields) -> bool:
    groups = config.inner("config_groups").values.values()
    return bool(groups) and all(
        isinstance(group, dict) and group.get("input_activations") is None for group in groups
    )


def _modelopt_kv_cache(config: Fields, inner: Fields) -> str | None:
    """Source: vLLM 0.32 utils/torch_utils.py get_kv_cache_quant_algo_string."""
    for source, key in (
        (inner, "kv_cache_scheme"),
        (config, "kv_cache_scheme"),
        (inner, "kv_cache_quant_algo"),
        (config, "kv_cache_quant_algo"),
    ):
        named = source.values.get(key)
        if not named:
            continue
        if isinstance(named, dict):
            bits = named.get("num_bits") if named.get("type") == "float" else None
            if bits == 8 and named.get("dynamic") is False:
                return "fp8"
            return "nvfp4" if bits == 4 else None
        return {"fp8": "fp8", "nvfp4": "nvfp4"}.get(str(named).lower())
    return None


def _compressed_tensors(config: Fields, fields: Fields) -> Quantisation:
    if fields.values.get("model_type") == "kimi_k3" or fields.outer.get("model_type") == "kimi_k3":
        return _mxfp4(config, fields)  # Kimi-K3's own loader takes the experts alone
    scheme, group_size = PLAIN, None
    listed: list[tuple[str, str]] = []
    for name, group in config.inner("config_groups").values.items():
        if not isinstance(group, dict):
            raise SpecError(f"config_groups: {name} must be an object, got {shown(group)}")
        found = Fields(group, {}, name)
        targets = found.words("targets")
        if len(targets) == 1 and targets[0].endswith("Attention"):
            continue  # the KV cache's own group
        one, size = _compressed_scheme(found)
        if group_size not in (None, size):
            raise UnsupportedModel("not yet supported: config_groups with different group sizes")
        group_size = size
        for target in targets:
            if target in ("Linear", "RoutedExperts", "FusedMoE"):
                scheme = one
            else:
                listed.append((target, one))
    return Quantisation(
        method="compressed-tensors",
        scheme=scheme,
        kept=config.words("ignore"),
        schemes_by_module=tuple(listed),
        group_size=group_size,
        kv_cache_dtype="fp8" if config.has("kv_cache_scheme") else None,
    )


def _compressed_scheme(group: Fields) -> tuple[str, int | None]:
    """(scheme, group size) of one of config_groups. Source: compressed_tensors.py _get_scheme_from_parts."""
    weights, inputs = group.inner("weights"), group.inner("input_activations")
    kind, bits = weights.word("type", default="int"), weights.size("num_bits", default=8, most=64)
    size = None if weights.values.get("group_size") in (None, -1) else weights.size("group_size")
    strategy = weights.word("strategy", default="group" if size else "tensor")
    static = bool(inputs.values) and not inputs.flag("dynamic")
    zeros = "" if weights.flag("symmetric", default=True) else "-zeros"
    if kind == "float" and bits == 4:
        if strategy == "tensor_group" or size == 16:
            return ("nvfp4" if inputs.values else "nvfp4-a16"), None
        return "mxfp4", None
    if kind == "float" and bits == 8:
        if strategy == "block":
            return "fp8-block", _square(weights, "block_structure")
        if strategy == "tensor":
            return ("fp8-tensor-static" if static else "fp8-tensor"), None
        if strategy == "channel":
            return "fp8-channel", None
        if strategy == "group" and size == 32:
            return "mxfp8", None
    if kind == "int" and bits == 8 and inputs.values and strategy in ("channel", "tensor"):
        return f"int8-{strategy}", None
    if kind == "int" and bits in (4, 8) and not inputs.values and strategy in ("channel", "group"):
        return f"int{bits}-packed{zeros}", size
    raise UnsupportedModel(
        f"not yet supported: compressed-tensors weights of {bits}-bit {kind} by {strategy}"
    )


def _awq(config: Fields, fields: Fields) -> Quantisation:
    bits = config.size("bits", "w_bit", default=4)
    if bits not in (4, 8):
        raise UnsupportedModel(f"not yet supported: AWQ of {bits} bits")
    return Quantisation(
        method="awq",
        scheme=f"awq-int{bits}",
        kept=config.words("modules_to_not_convert"),
        group_size=_group(config, "group_size", "q_group_size"),
    )


def _gptq(config: Fields, fields: Fields) -> Quantisation:
    bits = config.size("bits")
    if bits not in (4, 8):
        raise UnsupportedModel(f"not yet supported: GPTQ of {bits} bits")
    rules = config.inner("dynamic").values
    changed = [rule for rule in rules if not rule.startswith("-:")]
    if changed:
        raise UnsupportedModel(f"not yet supported: GPTQ that stores {shown(changed[0])} in another way")
    return Quantisation(
        method="gptq",
        scheme=f"gptq-int{bits}",
        kept=tuple("re:" + rule.removeprefix("-:") for rule in rules),
        group_size=_group(config, "group_size"),
    )


def _group(config: Fields, *keys: str) -> int | None:
    """-1, one group a row, is None."""
    key = next((key for key in keys if config.has(key)), keys[0])
    return None if config.values.get(key) == -1 else config.size(key)


METHODS: Final[Mapping[str, Callable[[Fields, Fields], Quantisation]]] = {
    "fp8": _fp8,
    "modelopt": _modelopt,
    "modelopt_fp4": _modelopt,
    "modelopt_mixed": _modelopt,
    "compressed-tensors": _compressed_tensors,
    "mxfp4": _mxfp4,
    "awq": _awq,
    "gptq": _gptq,
}
"""By quant_method."""
