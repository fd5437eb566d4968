"""Every quantization_config people publish is read or refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from estimator.fields import Fields, fields_of
from estimator.hf_config import with_quantisation_file
from estimator.model import Quantisation
from estimator.quantisation import METHODS, read_quantisation
from estimator.spec import SpecError, UnsupportedModel
from estimator.weights.formats import SCHEMES
from estimator.weights.schemes import KEPT_RULES


def read(config: Any, **outer: Any) -> Quantisation | None:
    return read_quantisation(fields_of({**outer, "quantization_config": config}, "m"))


def compressed(weights: dict[str, Any], inputs: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}, **more}


FLOAT8, INT8 = {"num_bits": 8, "type": "float"}, {"num_bits": 8, "type": "int"}
INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128}
DYNAMIC = {"dynamic": True}


@pytest.mark.parametrize(
    ("config", "scheme", "group_size"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8-block", 128),
        ({"quant_method": "fp8", "activation_scheme": "static"}, "fp8-tensor-static", None),
        ({"quant_method": "fp8", "activation_scheme": "dynamic"}, "fp8-tensor", None),
        ({"quant_method": "mxfp4"}, "plain", None),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4", None),
        ({"quant_method": "modelopt", "quant_algo": "fp8"}, "fp8-tensor-static", None),
        ({"quantization": {"quant_algo": "FP8_PB_WO"}}, "fp8-block", None),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "awq-int4", 128),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, "gptq-int8", None),
        (compressed({**FLOAT8, "strategy": "channel"}, DYNAMIC), "fp8-channel", None),
        (compressed({**FLOAT8, "strategy": "tensor"}, {"dynamic": False}), "fp8-tensor-static", None),
        (compressed({**FLOAT8, "strategy": "block", "block_structure": [128, 128]}), "fp8-block", 128),
        (compressed({**INT8, "strategy": "channel"}, DYNAMIC), "int8-channel", None),
        (compressed({**INT8, "strategy": "channel"}), "int8-packed", None),
        (compressed({**INT4, "symmetric": True}), "int4-packed", 128),
        (compressed({**INT4, "symmetric": False}), "int4-packed-zeros", 128),
        (
            compressed(
                {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}, DYNAMIC
            ),
            "nvfp4",
            None,
        ),
    ],
)
def test_a_scheme_and_its_group_size_are_read(
    config: dict[str, Any], scheme: str, group_size: int | None
) -> None:
    found = read(config)
    assert found is not None
    assert (found.scheme, found.group_size) == (scheme, group_size)
    assert found.scheme == "plain" or found.scheme in SCHEMES
    assert found.method in KEPT_RULES


@pytest.mark.parametrize(
    ("config", "kept"),
    [
        ({"quant_method": "fp8", "ignored_layers": ["a"], "modules_to_not_convert": ["b"]}, "a"),
        ({"quant_method": "fp8", "modules_to_not_convert": ["b"]}, "b"),
        ({"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["c*"]}, "c*"),
        ({"quantization": {"quant_algo": "FP8", "exclude_modules": ["d*"]}}, "d*"),
        (compressed({**INT8, "strategy": "channel"}, ignore=["re:e"]), "re:e"),
        ({"quant_method": "awq", "group_size": 128, "modules_to_not_convert": ["f"]}, "f"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128, "dynamic": {"-:g": {}}}, "re:g"),
    ],
)
def test_the_list_of_kept_modules_is_found_under_each_methods_own_key(
    config: dict[str, Any], kept: str
) -> None:
    found = read(config)
    assert found is not None
    assert found.kept[0] == kept


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, None),
        ({"quantization": {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8"}}, "fp8"),
        ({"quantization": {"quant_algo": "NVFP4", "kv_cache_quant_algo": "NVFP4"}}, "nvfp4"),
        (
            {
                "quant_method": "modelopt",
                "quant_algo": "FP8",
                "kv_cache_scheme": {**FLOAT8, "dynamic": False},
            },
            "fp8",
        ),
        (
            {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_scheme": {**INT8, "dynamic": False}},
            None,
        ),
        (
            compressed({**INT8, "strategy": "channel"}, kv_cache_scheme={**FLOAT8, "strategy": "tensor"}),
            "fp8",
        ),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, None),
    ],
)
def test_fp8_weights_do_not_make_an_fp8_cache_but_a_named_cache_format_does(
    config: dict[str, Any], expected: str | None
) -> None:
    found = read(config)
    assert found is not None
    assert found.kv_cache_dtype == expected


def test_a_mixed_checkpoint_says_layer_by_layer() -> None:
    layers = {"model.layers.0.mlp.experts": {"quant_algo": "NVFP4"}, "lm_head": {"quant_algo": "FP8"}}
    found = read({"quantization": {"quant_algo": "MIXED_PRECISION", "quantized_layers": layers}})
    assert found is not None
    assert found.scheme == "plain"
    assert dict(found.schemes_by_module) == {
        "model.layers.0.mlp.experts": "nvfp4",
        "lm_head": "fp8-tensor-static",
    }


def test_deepseek_v4_stores_its_experts_as_expert_dtype_says() -> None:
    fp8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    schemes = []
    for outer in ({}, {"expert_dtype": "fp4"}, {"expert_dtype": "fp8"}):
        found = read(fp8, model_type="deepseek_v4", **outer)
        assert found is not None
        schemes.append((found.scheme, dict(found.schemes_by_module)))
    mxfp4 = ("fp8-block-e8m0", {r"re:.*\bexperts$": "mxfp4"})
    assert schemes == [mxfp4, mxfp4, ("fp8-block", {})]


def test_the_config_nested_with_the_language_model_is_read_too() -> None:
    nested = {"text_config": {"quantization_config": {"quant_method": "awq", "group_size": 64}}}
    found = read_quantisation(fields_of(nested, "m"))
    assert found is not None
    assert found.group_size == 64


def test_modelopts_own_file_counts_only_where_config_json_is_silent() -> None:
    own = {"quantization": {"quant_algo": "FP8"}}
    silent, speaking = {"a": 1}, {"quantization_config": {"quant_method": "mxfp4"}}
    assert with_quantisation_file(silent, own)["quantization_config"] == own
    assert with_quantisation_file(speaking, own) is speaking


def test_sixteen_bits_are_no_quantisation() -> None:
    assert read_quantisation(Fields({}, {}, "m")) is None
    assert read(None) is None


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"quant_method": "bitsandbytes"}, "'bitsandbytes'"),
        ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, "'W4A8_AWQ'"),
        ({"quant_method": "fp8", "weight_block_size": [1, 128]}, "weight_block_size"),
        ({"quant_method": "gptq", "bits": 3, "group_size": 128}, "3 bits"),
        (
            {"quant_method": "gptq", "bits": 4, "group_size": 128, "dynamic": {"+:x": {"bits": 8}}},
            "another way",
        ),
        (compressed({"num_bits": 2, "type": "int", "strategy": "group", "group_size": 32}), "2-bit int"),
    ],
)
def test_what_we_cannot_count_is_refused_by_name(config: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedModel, match=f"not yet supported: .*{named}"):
        read(config)


@pytest.mark.parametrize(
    "config",
    [
        [1],
        "fp8",
        {},
        {"quant_method": 7},
        {"quant_method": "fp8", "modules_to_not_convert": "lm_head"},
        {"quant_method": "fp8", "weight_block_size": "128"},
        {"quantization": {"quant_algo": "MIXED_PRECISION", "quantized_layers": {}}},
        {"quantization": {"quant_algo": "MIXED_PRECISION", "quantized_layers": {"a": {"quant_algo": None}}}},
        {"quant_method": "compressed-tensors", "config_groups": {"g": 3}},
        {"quant_method": "compressed-tensors", "config_groups": {"g": {"targets": "Linear"}}},
        compressed({**INT4, "group_size": "x"}),
        compressed({**FLOAT8, "strategy": "block"}),
        {"quant_method": "awq", "bits": 4, "group_size": 0},
        {"quantization": 3},
    ],
)
def test_nonsense_is_one_sentence(config: Any) -> None:
    if not config:
        assert read(config) is None
        return
    with pytest.raises(SpecError) as refusal:
        read(config)
    assert "\n" not in str(refusal.value)


def test_every_method_has_a_rule_for_names() -> None:
    assert {name.split("_fp4")[0] for name in METHODS} <= set(KEPT_RULES)
