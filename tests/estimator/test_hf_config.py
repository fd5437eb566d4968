"""A config.json comes from anywhere: it is read exactly or refused in one sentence."""

from __future__ import annotations

import importlib
import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estimator.hf_config import CONFIG_BYTES_MAX, FAMILIES, model_spec, read_model, with_quantisation_file
from estimator.model import Attention, ModelSpec
from estimator.spec import SpecError, UnsupportedModel

ARCHITECTURES = [name for names in FAMILIES.values() for name in names]


@pytest.mark.parametrize("module", FAMILIES)
def test_the_table_of_families_is_what_their_modules_read(module: str) -> None:
    readers = importlib.import_module(f"estimator.families.{module}").READERS
    assert sorted(readers) == sorted(FAMILIES[module])


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
NAME = "name of a model"
READ_S = 1.0
"""No config.json takes more of a processor to read or refuse."""


def attention_of(spec: ModelSpec) -> Attention:
    cache = spec.layers[0].caches[0]
    assert isinstance(cache, Attention)
    return cache


def test_head_dim_wins_over_hidden_size_by_heads() -> None:
    assert attention_of(model_spec(QWEN3, NAME)).head_size == 32
    assert attention_of(model_spec({**QWEN3, "head_dim": None}, NAME)).head_size == 16


def test_without_kv_heads_every_attention_head_has_its_own() -> None:
    config = {key: value for key, value in QWEN3.items() if key != "num_key_value_heads"}
    assert attention_of(model_spec(config, NAME)).kv_heads == 4


def test_qwen2_has_biases_its_config_does_not_mention_and_qwen3_only_those_it_does() -> None:
    def has_bias(config: dict[str, Any]) -> bool:
        return any(matrix.name == "self_attn.qkv_proj.bias" for matrix in model_spec(config, NAME).matrices)

    assert has_bias({**QWEN3, "architectures": ["Qwen2ForCausalLM"]})
    assert not has_bias(QWEN3)
    assert has_bias({**QWEN3, "attention_bias": True})


def test_a_tied_output_head_is_the_embedding() -> None:
    tied, untied = (model_spec({**QWEN3, "tie_word_embeddings": tie}, NAME) for tie in (True, False))
    assert untied.parameters - tied.parameters == 1000 * 64


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "torch.bfloat16"])
def test_the_dtype_key_may_be_old_or_new(dtype: str) -> None:
    assert model_spec({**QWEN3, "dtype": dtype}, NAME).dtype in ("bfloat16", "float16")
    assert model_spec({**QWEN3, "torch_dtype": dtype}, NAME) == model_spec({**QWEN3, "dtype": dtype}, NAME)


@pytest.mark.parametrize(
    ("rope", "tokens"),
    [
        (None, 4096),
        ({"rope_type": "default", "factor": 8.0}, 4096),
        ({"rope_type": "llama3", "factor": 8.0}, 4096),
        ({"rope_type": "yarn", "factor": 4.0}, 4096),
        ({"rope_type": "longrope", "factor": 4.0}, 4096),
        ({"type": "linear", "factor": 4.0}, 16384),
        ({"type": "dynamic", "factor": 2}, 8192),
        ({"type": "linear", "factor": 1.5}, 6144),
    ],
)
def test_the_context_is_the_one_vllm_would_serve(rope: object, tokens: int) -> None:
    assert model_spec({**QWEN3, "rope_scaling": rope}, NAME).context_tokens_max == tokens


def test_the_shortest_of_several_context_lengths_is_served() -> None:
    assert model_spec({**QWEN3, "model_max_length": 2048}, NAME).context_tokens_max == 2048
    assert model_spec({**QWEN3, "seq_length": 8192}, NAME).context_tokens_max == 4096


def test_a_window_that_is_switched_off_is_no_window() -> None:
    for architecture in ("Qwen2ForCausalLM", "Qwen3ForCausalLM", "MiMoForCausalLM"):
        windowed = {**QWEN3, "architectures": [architecture], "sliding_window": 128}
        assert attention_of(model_spec({**windowed, "use_sliding_window": False}, NAME)).window_tokens is None


@pytest.mark.parametrize(
    "extra",
    [
        {"rope_scaling": {"rope_type": "of tomorrow", "factor": 2}},
        {"torch_dtype": "float8_e4m3fn"},
        {"quantization_config": {"quant_method": "of tomorrow"}},
        {"architectures": ["Qwen3ForSequenceClassification"]},
    ],
)
def test_one_key_we_cannot_count_refuses_the_model(extra: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModel, match="not yet supported"):
        model_spec({**QWEN3, **extra}, NAME)


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        ({"hidden_size": None}, "the config has no hidden_size"),
        ({"hidden_size": "4096"}, "hidden_size must be a whole number"),
        ({"hidden_size": 0}, "hidden_size must be a whole number"),
        ({"hidden_size": 10**12}, "hidden_size must be a whole number from 1 to 100,000,000"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be a whole number from 1 to 2,000"),
        ({"num_attention_heads": True}, "num_attention_heads must be a whole number"),
        ({"num_key_value_heads": 3}, "4 attention heads do not share 3 KV heads"),
        ({"head_dim": None, "hidden_size": 66}, "the config has no head_dim"),
        ({"max_position_embeddings": 1e4}, "max_position_embeddings must be a whole number"),
        ({"max_position_embeddings": None}, "the config has no max_position_embeddings"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false"),
        ({"rope_scaling": {"type": "linear", "factor": -1}}, "factor must be a number"),
        ({"rope_scaling": {"type": 7}}, "type must be text"),
        ({"rope_scaling": [1]}, "rope_scaling must be an object"),
        ({"vocab_size": float("nan")}, "vocab_size must be a whole number"),
        ({"model_type": None}, "names no model_type"),
        ({"architectures": []}, "names no architectures"),
        ({"architectures": [["Qwen3ForCausalLM"]]}, "names no architectures"),
        ({"architectures": "Qwen3ForCausalLM"}, "names no architectures"),
        ({"quantization_config": "fp8"}, "quantization_config must be an object"),
    ],
)
def test_a_broken_config_is_one_sentence(broken: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SpecError, match=sentence) as error:
        model_spec({**QWEN3, **broken}, NAME)
    assert "\n" not in str(error.value)


def test_a_huge_value_is_cut_in_the_sentence_that_refuses_it() -> None:
    with pytest.raises(SpecError) as error:
        model_spec({**QWEN3, "hidden_size": "9" * 1_000_000}, NAME)
    assert len(str(error.value)) < 200


SIZES = {
    **{key: value for key, value in QWEN3.items() if key not in ("architectures", "model_type")},
    "kv_lora_rank": 16,
    "q_lora_rank": None,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "sliding_window": 64,
    "layer_types": ["linear_attention", "full_attention"],
    "hybrid_override_pattern": "M*",
    "layers_block_type": ["mamba", "hybrid"],
    "linear_attn_config": {"kda_layers": [1], "num_heads": 2, "head_dim": 16, "short_conv_kernel_size": 4},
    "mla_use_nope": True,
    "vision_config": {"hidden_size": 16, "intermediate_size": 16, "depth": 1, "out_hidden_size": 64},
    "text_config": None,
    "quantization_config": None,
    "rope_scaling": None,
    "rope_parameters": None,
    "dtype": "bfloat16",
    "num_nextn_predict_layers": 0,
    "model_type": "m",
}
ODD = (
    st.none()
    | st.booleans()
    | st.integers(min_value=-2, max_value=300)
    | st.sampled_from(
        [0, -1, 10**6, 10**8, 10**30, 1e308, float("nan"), float("inf"), "", "auto", "MEx*", [], {}, [[]]]
    )
    | st.lists(st.sampled_from(["full_attention", "mamba", "conv", 1, 0, -1, None, {}]), max_size=4)
)
JSON = st.recursive(
    ODD,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*SIZES, "type", "factor"]), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(deadline=None, max_examples=400)
@given(
    architecture=st.sampled_from([*ARCHITECTURES, "NovelForCausalLM", "NovelLMHeadModel"]),
    changes=st.dictionaries(st.sampled_from([*SIZES]), JSON, max_size=5),
    nested=st.booleans(),
)
def test_no_config_whatever_of_any_architecture_raises_anything_but_a_spec_error(
    architecture: str, changes: dict[str, Any], nested: bool
) -> None:
    body = {**SIZES, **changes}
    config = {
        **({"text_config": body} if nested else body),
        "architectures": [architecture],
        "model_type": "m",
    }
    started = time.process_time()
    with suppress(SpecError):
        spec = model_spec(config, NAME)
        assert spec.parameters > 0
    assert time.process_time() - started < READ_S


@given(st.dictionaries(st.text(max_size=12), JSON, max_size=4))
def test_no_arbitrary_object_raises_anything_but_a_spec_error(config: dict[str, Any]) -> None:
    with suppress(SpecError):
        model_spec({"architectures": ["NovelForCausalLM"], "model_type": "m", **config}, NAME)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "[" * 100_000, '{"a":' * 100_000, "\x00", "NaN"])
def test_a_file_that_is_no_config_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(SpecError, match="JSON"):
        read_model(tmp_path)


def test_a_file_in_another_encoding_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"\xff\xfe{\x00")
    with pytest.raises(SpecError, match="JSON"):
        read_model(tmp_path)


def test_a_number_of_a_million_digits_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(f'{{"hidden_size": {"9" * 1_000_000}}}', encoding="utf-8")
    with pytest.raises(SpecError, match="JSON"):
        read_model(tmp_path)


def test_a_file_of_a_hundred_megabytes_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as stream:
        stream.truncate(100_000_000)
    started = time.process_time()
    with pytest.raises(SpecError, match=f"larger than {CONFIG_BYTES_MAX:,} bytes"):
        read_model(tmp_path)
    assert time.process_time() - started < READ_S


def test_text_configs_nested_without_end_are_one_sentence() -> None:
    config: dict[str, Any] = dict(QWEN3)
    for _ in range(500):
        config = {"text_config": config, "architectures": ["Qwen3ForCausalLM"], "model_type": "m"}
    with pytest.raises(SpecError, match="hidden_size"):
        model_spec(config, NAME)


def test_a_folder_and_its_config_are_the_same_model(tmp_path: Path) -> None:
    folder = tmp_path / "My-Model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(QWEN3), encoding="utf-8")
    assert read_model(folder) == read_model(folder / "config.json")
    assert read_model(folder).name == "My-Model"


def test_a_missing_config_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"cannot read .*config\.json: No such file"):
        read_model(tmp_path)


def test_a_folder_in_place_of_the_config_names_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    with pytest.raises(SpecError, match=r"cannot read .*: "):
        read_model(tmp_path / "config.json")


def test_a_modelopt_file_beside_the_config_counts_only_where_the_config_names_none(tmp_path: Path) -> None:
    file = {"quantization": {"quant_algo": "TOMORROW"}}
    (tmp_path / "config.json").write_text(json.dumps(QWEN3), encoding="utf-8")
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(file), encoding="utf-8")
    with pytest.raises(UnsupportedModel, match="TOMORROW"):
        read_model(tmp_path)
    named = {**QWEN3, "quantization_config": {"quant_method": "fp8"}}
    assert with_quantisation_file(named, file) == named
