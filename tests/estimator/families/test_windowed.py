"""Models whose layers differ in window, chunk or head size: caches and parameters are vLLM's own classes'."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from estimator.engine_spec import EngineSpec
from estimator.hf_config import FAMILIES, model_spec
from estimator.model import Attention, Matrix, ModelSpec
from estimator.spec import SpecError, UnsupportedModel
from estimator.weights.count import stage_bytes

FACTS: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "fixtures/configs/windowed.json").read_text(encoding="utf-8")
)["models"]
SLIDING, FULL = "sliding_attention", "full_attention"


def config(name: str, **changes: Any) -> dict[str, Any]:
    """The config of a fact; a change to ... takes the key away."""
    changed = {**FACTS[name]["config"], **changes}
    return {key: value for key, value in changed.items() if value is not ...}


def read(name: str, **changes: Any) -> ModelSpec:
    return model_spec(config(name, **changes), name)


def windows(spec: ModelSpec) -> list[int | None]:
    return [cache.window_tokens for cache in spec.caches if isinstance(cache, Attention)]


@pytest.fixture(params=FACTS)
def model(request: pytest.FixtureRequest) -> tuple[dict[str, Any], ModelSpec]:
    fact = FACTS[request.param]
    return fact, model_spec(fact["config"], request.param)


def as_vllm(cache: Attention) -> list[Any]:
    return [
        *(cache.kv_heads, cache.head_size, cache.head_size_v),
        *(cache.window_tokens, cache.chunk_tokens, int(cache.cross)),
    ]


def padded(matrices: list[Matrix]) -> int:
    return sum(
        (matrix.rows + -matrix.rows % matrix.pad_rows) * matrix.columns * matrix.experts
        for matrix in matrices
    )


def test_each_layer_has_the_cache_vllm_allocates_for_it(model: tuple[dict[str, Any], ModelSpec]) -> None:
    fact, spec = model
    assert [as_vllm(cache) for cache in spec.caches if isinstance(cache, Attention)] == fact["caches"]


def test_every_parameter_is_counted_in_its_own_dtype(model: tuple[dict[str, Any], ModelSpec]) -> None:
    fact, spec = model
    matrices = list(spec.matrices)
    assert padded(matrices) == fact["parameters"]
    assert padded([matrix for matrix in matrices if matrix.element_bytes == 4]) == fact["float32"]


def test_two_ranks_hold_the_whole_model_between_them(model: tuple[dict[str, Any], ModelSpec]) -> None:
    _, spec = model
    (whole,), (half,) = (stage_bytes(spec, EngineSpec(tp=tp)) for tp in (1, 2))
    assert whole / 2 <= half < whole


def test_layers_that_read_another_layers_cache_keep_none() -> None:
    spec = read("gemma3n")
    assert [len(layer.caches) for layer in spec.layers] == [1] * 7 + [0] * 3
    assert spec.parameters < read("gemma3n", num_kv_shared_layers=0).parameters


def test_the_last_layer_of_gemma_4_is_full_whatever_is_written() -> None:
    assert windows(read("gemma4", layer_types=[SLIDING] * 6)) == [64] * 5 + [None]


def test_global_kv_heads_count_only_where_keys_serve_as_values() -> None:
    def kv_heads(**changes: Any) -> int:
        *_, last = read("gemma4", **changes).caches
        assert isinstance(last, Attention)
        return last.kv_heads

    assert kv_heads() == 1
    assert kv_heads(attention_k_eq_v=False) == 2


def test_a_config_without_layer_types_slides_in_every_layer_of_a_llama() -> None:
    assert windows(read("llama-window")) == [64] * 6
    assert windows(read("llama-types")) == [64, 64, None] * 2


def test_gpt_oss_slides_in_its_even_layers_whatever_layer_types_say() -> None:
    assert windows(read("gpt-oss", layer_types=[FULL] * 6)) == [64, None] * 3
    assert windows(read("gpt-oss", layer_types=[SLIDING] * 6)) == [64] * 6


@pytest.mark.parametrize("name", ["gemma2", "gemma3-types", "cohere2", "phi3", "mistral", "qwen3"])
def test_a_window_of_zero_or_null_is_no_window(name: str) -> None:
    for nothing in (0, None):
        assert windows(read(name, sliding_window=nothing)) == [None] * 6


def test_the_window_a_config_does_not_name_is_its_class_own() -> None:
    assert set(windows(read("mistral", sliding_window=...))) == {4096}
    assert set(windows(read("gemma2", sliding_window=...))) == {4096, None}
    assert set(windows(read("cohere2", sliding_window=...))) == {4097, None}
    assert set(windows(read("phi3", sliding_window=...))) == {None}


def test_chunks_lie_in_the_layers_with_a_rotary_embedding() -> None:
    chunks = [cache.chunk_tokens for cache in read("llama4-nope").caches if isinstance(cache, Attention)]
    assert chunks == [64, None, 64, None, 64, 64]
    assert not any(
        cache.chunk_tokens
        for cache in read("llama4-nope", attention_chunk_size=None).caches
        if isinstance(cache, Attention)
    )


def test_the_context_of_gemma_3_is_not_scaled_twice() -> None:
    rope = {"factor": 8.0, "rope_type": "linear"}
    assert read("gemma3-types", rope_scaling=rope).context_tokens_max == 4096
    assert read("gemma2", rope_scaling=rope).context_tokens_max == 8 * 4096


def test_a_mistral_3_that_does_not_say_whether_its_head_is_tied_warns() -> None:
    silent = read("mistral3", tie_word_embeddings=...)
    assert any("tie_word_embeddings" in caution for caution in silent.cautions)
    assert not read("mistral3").cautions
    assert silent.parameters == read("mistral3").parameters


BROKEN: tuple[tuple[str, dict[str, Any], str], ...] = (
    (
        "gemma3-types",
        {"layer_types": [FULL] * 5},
        "layer_types must name one kind for each of 6 layers, got 5",
    ),
    ("gemma3-types", {"layer_types": "sliding"}, "layer_types must be a list"),
    ("gemma2", {"sliding_window": -1}, "sliding_window must be a whole number from 0"),
    ("gemma2", {"sliding_window": "wide"}, "sliding_window must be a whole number"),
    ("exaone4-pat", {"sliding_window_pattern": "LLLG"}, "sliding_window_pattern must be a whole number"),
    ("gemma3n", {"num_kv_shared_layers": 10}, "num_kv_shared_layers must be less than the 10 layers"),
    (
        "gemma3n",
        {"intermediate_size": [192] * 9},
        "intermediate_size must have an entry for each of 10 layers",
    ),
    ("gemma4", {"global_head_dim": 0}, "global_head_dim must be a whole number from 1"),
    ("gemma4-moe", {"num_experts": 10**12}, "num_experts must be a whole number from 1"),
    ("mimo-v2", {"hybrid_layer_pattern": [0, 1]}, "hybrid_layer_pattern must have an entry for each of 6"),
    (
        "mimo-v2",
        {"hybrid_layer_pattern": [2] * 6},
        "hybrid_layer_pattern must hold whole numbers from 0 to 1",
    ),
    ("mimo-v2", {"swa_num_key_value_heads": 3}, "swa_num_key_value_heads: 4 heads do not share 3"),
    ("mimo-v2", {"moe_router_dtype": "int3"}, "moe_router_dtype must be one of"),
    ("llama4-nope", {"no_rope_layers": [1]}, "no_rope_layers must have an entry for each of 6 layers, got 1"),
    ("step3p5", {"moe_layers_enum": "1,two"}, "moe_layers_enum must list layer numbers"),
    ("whisper", {"decoder_attention_heads": 3}, "decoder_attention_heads: 3 heads do not share d_model 128"),
    ("llama4-mm", {"vision_config": {"image_size": 7}}, "image_size must be at least patch_size 14, got 7"),
)


@pytest.mark.parametrize(("name", "changes", "sentence"), BROKEN)
def test_a_bad_value_is_one_sentence_with_the_fields_name(
    name: str, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(SpecError, match=sentence) as raised:
        read(name, **changes)
    assert "\n" not in str(raised.value)


REFUSED: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("gemma2", {"layer_types": ["linear_attention"] * 6}, "layer_types of kind 'linear_attention'"),
    ("gemma3-types", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ("gemma4", {"use_bidirectional_attention": "all"}, "use_bidirectional_attention 'all'"),
    ("qwen2", {"max_window_layers": 3}, "max_window_layers 3 of 6 layers"),
    ("mistral3", {"text_config": {"model_type": "gpt2"}}, "text_config of model_type 'gpt2'"),
)


@pytest.mark.parametrize(("name", "changes", "words"), REFUSED)
def test_what_cannot_be_counted_is_refused_by_name(name: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedModel, match=words):
        read(name, **changes)


def test_every_architecture_of_the_family_has_a_proven_model_or_is_refused() -> None:
    proven = {fact["config"]["architectures"][0] for fact in FACTS.values()}
    refused = {"Gemma3nForConditionalGeneration"}
    assert set(FAMILIES["windowed"]) - proven - refused == {"MiMoV2ForCausalLM"}  # the same class in vLLM
    for architecture in refused:
        with pytest.raises(UnsupportedModel, match=architecture):
            read("gemma3n", architectures=[architecture])
