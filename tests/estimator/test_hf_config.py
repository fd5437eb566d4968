"""A config.json comes from anywhere: it is read exactly or refused in one sentence."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.hf_config import FAMILIES, model_spec, read_model
from estimator.spec import SpecError, UnsupportedModel

QWEN3: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 1000,
    "max_position_embeddings": 4096,
}
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}


def test_head_dim_wins_over_hidden_size_by_heads() -> None:
    assert model_spec(QWEN3, "m").head_size == 32
    assert model_spec({**QWEN3, "head_dim": None}, "m").head_size == 16


def test_without_kv_heads_every_attention_head_has_its_own() -> None:
    config = {key: value for key, value in QWEN3.items() if key != "num_key_value_heads"}
    assert model_spec(config, "m").kv_heads == 4


def test_qwen2_has_biases_its_config_does_not_mention_and_qwen3_only_those_it_does() -> None:
    qwen2 = {**QWEN3, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
    assert model_spec(qwen2, "m").attention_bias
    assert not model_spec(QWEN3, "m").attention_bias
    assert model_spec({**QWEN3, "attention_bias": True}, "m").attention_bias


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "torch.bfloat16"])
def test_the_dtype_key_may_be_old_or_new(dtype: str) -> None:
    assert model_spec({**QWEN3, "dtype": dtype}, "m").dtype in ("bfloat16", "float16")
    assert model_spec({**QWEN3, "torch_dtype": dtype}, "m") == model_spec({**QWEN3, "dtype": dtype}, "m")


@pytest.mark.parametrize(
    ("rope", "tokens"),
    [
        (None, 4096),
        ({"rope_type": "llama3", "factor": 8.0}, 4096),
        ({"rope_type": "yarn", "factor": 4.0}, 4096),
        ({"type": "linear", "factor": 4.0}, 16384),
    ],
)
def test_the_context_is_the_one_vllm_would_serve(rope: object, tokens: int) -> None:
    assert model_spec({**QWEN3, "rope_scaling": rope}, "m").context_tokens_max == tokens


@pytest.mark.parametrize(
    "extra",
    [
        {"sliding_window": 128, "use_sliding_window": True},
        {"layer_types": ["full_attention", "sliding_attention"]},
        {"num_experts": 8},
        {"kv_lora_rank": 512},
        {"model_type": "qwen4"},
        {"architectures": ["Qwen3ForSequenceClassification"]},
        {"rope_scaling": {"rope_type": "longrope", "factor": 2}},
        {"torch_dtype": "float8_e4m3fn"},
        {"quantization_config": {"quant_method": "awq", "bits": 4}},
        {"quantization_config": {**FP8, "weight_block_size": [64, 64]}},
        {"quantization_config": {**FP8, "kv_cache_scheme": {"num_bits": 8}}},
        {"quantization_config": {**FP8, "modules_to_not_convert": ["model.layers.0.mlp.down_proj"]}},
    ],
)
def test_one_key_we_cannot_count_refuses_the_model(extra: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModel, match="not yet supported"):
        model_spec({**QWEN3, **extra}, "m")


def test_a_window_that_is_switched_off_is_no_window() -> None:
    for model_type in ("qwen2", "qwen3", "mimo"):
        config = {
            **QWEN3,
            "model_type": model_type,
            "architectures": [FAMILIES[model_type].architecture],
            "sliding_window": 131072,
            "use_sliding_window": False,
        }
        assert model_spec(config, "m").layers == 2


def test_fp8_weights_leave_only_the_output_head_alone() -> None:
    quantised = {**FP8, "modules_to_not_convert": ["lm_head"]}
    assert model_spec({**QWEN3, "quantization_config": quantised}, "m").quantisation == "fp8-block128"


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        ({"hidden_size": None}, "the config has no hidden_size"),
        ({"hidden_size": "4096"}, "hidden_size must be a whole number"),
        ({"hidden_size": 0}, "hidden_size must be a whole number"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be a whole number from 1 to 2,000"),
        ({"num_attention_heads": True}, "num_attention_heads must be a whole number"),
        ({"num_key_value_heads": 3}, "4 attention heads do not share 3 KV heads"),
        ({"head_dim": None, "hidden_size": 66}, "the config has no head_dim"),
        ({"max_position_embeddings": 1e4}, "max_position_embeddings must be a whole number"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false"),
        ({"rope_scaling": {"type": "linear", "factor": -1}}, "the factor of rope_scaling"),
        ({"rope_scaling": [1]}, "rope_scaling must be an object"),
        ({"model_type": None}, "names no model_type"),
        ({"architectures": []}, "names no architectures"),
        ({"quantization_config": "fp8"}, "quantization_config must be an object"),
    ],
)
def test_a_broken_config_is_one_sentence(broken: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SpecError, match=sentence) as error:
        model_spec({**QWEN3, **broken}, "m")
    assert "\n" not in str(error.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text("ab_1 ", max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("ab_1 ", max_size=8), inner, max_size=3)
    ),
    max_leaves=5,
)
KEYS = (
    *QWEN3,
    "rope_scaling",
    "quantization_config",
    "sliding_window",
    "layer_types",
    "text_config",
    "dtype",
)


@given(st.dictionaries(st.sampled_from(KEYS), JSON, max_size=4))
def test_no_config_whatever_raises_anything_but_a_spec_error(extra: dict[str, Any]) -> None:
    with suppress(SpecError):
        model_spec({**QWEN3, **extra}, "m")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "[" * 100_000, "\x00"])
def test_a_file_that_is_no_config_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(SpecError, match="JSON"):
        read_model(tmp_path)


def test_a_folder_and_its_config_are_the_same_model(tmp_path: Path) -> None:
    folder = tmp_path / "My-Model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(QWEN3), encoding="utf-8")
    assert read_model(folder) == read_model(folder / "config.json")
    assert read_model(folder).name == "My-Model"


def test_a_missing_config_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"cannot read .*config\.json: No such file"):
        read_model(tmp_path)


def test_a_modelopt_file_beside_the_config_refuses_the_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(QWEN3), encoding="utf-8")
    (tmp_path / "hf_quant_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UnsupportedModel, match="ModelOpt"):
        read_model(tmp_path)
