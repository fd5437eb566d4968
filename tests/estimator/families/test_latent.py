"""Models with latent attention against vLLM's own classes: caches, parameters, indexers, bad input."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.engine_spec import EngineSpec
from estimator.hf_config import model_spec
from estimator.model import (
    Attention,
    Cache,
    CompressedAttention,
    IndexerKeys,
    LatentAttention,
    Layer,
    Matrix,
    ModelSpec,
)
from estimator.spec import SpecError, UnsupportedModel
from estimator.weights.count import stage_bytes

FACTS = json.loads(
    (Path(__file__).parents[2] / "fixtures" / "configs" / "latent.json").read_text(encoding="utf-8")
)["models"]
V2 = FACTS["small-deepseek_v2"]["config"]
V3 = FACTS["small-deepseek_v3"]["config"]
V4 = FACTS["DeepSeek-V4-Flash"]["config"]
GLM = FACTS["GLM-5.2"]["config"]
K25 = {
    "architectures": ["KimiK25ForConditionalGeneration"],
    "model_type": "kimi_k25",
    "text_config": V3,
    "vision_config": {
        f"vt_{key}" if key.startswith(("hidden", "intermediate", "num")) else key: value
        for key, value in FACTS["small-kimi_vl"]["config"]["vision_config"].items()
    },
}


@pytest.fixture(params=FACTS)
def model(request: pytest.FixtureRequest) -> tuple[dict[str, Any], ModelSpec]:
    fact = FACTS[request.param]
    return fact, model_spec(fact["config"], request.param)


def as_vllm(cache: Cache) -> list[Any]:
    if isinstance(cache, LatentAttention):
        return ["latent", [1, cache.latent_size + cache.rope_size]]
    if isinstance(cache, IndexerKeys):
        return ["indexer", [1, fp8_with_scales(cache.head_size)]]
    if isinstance(cache, CompressedAttention):
        index = fp8_with_scales(cache.index_head_size) if cache.index_head_size else 0
        return ["compressed", [cache.window_tokens, cache.head_size, max(cache.ratio, 1), index]]
    assert isinstance(cache, Attention)
    return ["attention", [cache.kv_heads, cache.head_size]]


def fp8_with_scales(head_size: int) -> int:
    return head_size + head_size // 128 * 4


def stored_as(matrix: Matrix, spec: ModelSpec) -> str:
    if matrix.element_bytes == 4:
        return "float32"
    if not matrix.quantised or spec.quantisation is None:
        return "bfloat16"
    is_v4 = spec.quantisation.method == "deepseek_v4_fp8"
    return "mxfp4" if is_v4 and matrix.experts > 1 else "float8_e4m3fn"


def padded(matrix: Matrix) -> int:
    return (matrix.rows + -matrix.rows % matrix.pad_rows) * matrix.columns * matrix.experts


def named(layer: Layer, name: str) -> list[Matrix]:
    return [matrix for matrix in layer.matrices if matrix.name == name]


def indexers(spec: ModelSpec) -> list[int]:
    """Layers with an indexer of their own, by the matrices; the caches must agree."""
    found = [index for index, layer in enumerate(spec.layers) if named(layer, "self_attn.indexer.wq_b")]
    kept = [
        index
        for index, layer in enumerate(spec.layers)
        if any(isinstance(cache, IndexerKeys) for cache in layer.caches)
    ]
    assert found == kept
    return found


def test_every_cache_is_the_one_vllm_allocates(model: tuple[dict[str, Any], ModelSpec]) -> None:
    fact, spec = model
    ours = Counter(json.dumps(as_vllm(cache)) for cache in spec.caches)
    assert ours == {json.dumps(cache): count for count, cache in fact["caches"]}


def test_every_parameter_is_counted_in_its_own_dtype(model: tuple[dict[str, Any], ModelSpec]) -> None:
    fact, spec = model
    ours: Counter[str] = Counter()
    for matrix in spec.matrices:
        ours[stored_as(matrix, spec)] += padded(matrix)
    # block scales are float32 too, and not parameters of the model
    expected = fact["elements"]
    assert {dtype: ours[dtype] for dtype in expected} == expected


def test_the_rotary_tables_are_vllms(model: tuple[dict[str, Any], ModelSpec]) -> None:
    fact, spec = model
    if "rope_bytes" in fact:
        assert 2 * spec.rope_elements == fact["rope_bytes"]


def test_only_every_fourth_layer_of_glm_5_2_owns_an_indexer() -> None:
    assert indexers(model_spec(GLM, "m")) == FACTS["GLM-5.2"]["indexers"]
    assert len(FACTS["GLM-5.2"]["indexers"]) == 21


@pytest.mark.parametrize(
    ("keys", "owners"),
    [
        ({"index_topk_freq": 1}, [0, 1, 2, 3, 4, 5, 6, 7]),
        ({"index_topk_freq": 3, "index_skip_topk_offset": None}, [0, 1, 4, 7]),
        ({"index_topk_freq": 4, "index_skip_topk_offset": 3}, [0, 1, 2, 6]),
        ({"index_topk_pattern": "FSSF"}, [0, 3, 4, 5, 6, 7]),
        ({"index_topk_pattern": ["F", "S", "S", "S", "F", "S", "S", "S"]}, [0, 4]),
    ],
)
def test_frequency_offset_and_pattern_name_the_layers_with_an_indexer(
    keys: dict[str, Any], owners: list[int]
) -> None:
    assert indexers(model_spec({**GLM, "num_hidden_layers": 8, **keys}, "m")) == owners


def test_a_sparse_layer_without_an_indexer_still_reads_sparsely() -> None:
    caches = [cache for cache in model_spec(GLM, "m").caches if isinstance(cache, LatentAttention)]
    assert len(caches) == 78
    assert all(cache.sparse for cache in caches)
    assert not any(cache.sparse for cache in model_spec(V3, "m").caches if isinstance(cache, LatentAttention))


def test_a_draft_layer_is_outside_the_model_and_always_owns_an_indexer() -> None:
    spec = model_spec({**GLM, "num_nextn_predict_layers": 2}, "m")
    draft, second = spec.draft_layers
    assert draft == second
    assert [type(cache) for cache in draft.caches] == [IndexerKeys, LatentAttention]
    assert named(draft, "eh_proj")[0].elements == 2 * spec.hidden_size**2
    alone = model_spec({**GLM, "num_nextn_predict_layers": 0}, "m")
    assert alone.draft_layers == ()
    assert alone.parameters == spec.parameters


def test_a_draft_layer_of_deepseek_v4_keeps_the_window_alone() -> None:
    (draft,) = model_spec(V4, "m").draft_layers
    (cache,) = draft.caches
    assert isinstance(cache, CompressedAttention)
    assert (cache.ratio, cache.index_head_size) == (0, None)
    assert not any("compressor" in matrix.name or "tid2eid" in matrix.name for matrix in draft.matrices)


def test_down_projections_and_indexers_are_whole_on_every_rank() -> None:
    layer = model_spec(GLM, "m").layers[0]
    splits = {matrix.name.removeprefix("self_attn."): matrix.split for matrix in layer.matrices}
    assert splits == {
        "input_layernorm": "none",
        "fused_qkv_a_proj": "none",
        "q_a_layernorm": "none",
        "q_b_proj": "output",
        "kv_a_layernorm": "none",
        "kv_b_proj": "output",
        "o_proj": "input",
        "indexer.wq_b": "none",
        "indexer.wk_weights_proj": "none",
        "indexer.k_norm": "none",
        "indexer.k_norm.bias": "none",
        "post_attention_layernorm": "none",
        "mlp.gate_up_proj": "output",
        "mlp.down_proj": "input",
    }


def test_the_output_head_is_its_own_even_in_a_tied_config() -> None:
    tied, own = (model_spec({**V3, "tie_word_embeddings": value}, "m") for value in (True, False))
    assert tied.parameters == own.parameters


def test_a_tower_that_tp_does_not_divide_stays_whole() -> None:
    spec = model_spec(K25, "m")
    blocks = [matrix for matrix in spec.before if ".blocks." in matrix.name]
    assert {matrix.heads for matrix in blocks} == {4}
    assert not any(matrix.quantised for matrix in spec.before)


def test_kimi_vl_and_kimi_k2_5_have_the_same_tower() -> None:
    vl, k25 = model_spec(FACTS["small-kimi_vl"]["config"], "m"), model_spec(K25, "m")
    assert [matrix.elements for matrix in vl.before[1:]] == [matrix.elements for matrix in k25.before[1:]]


def test_the_sinks_of_deepseek_v4_are_padded_to_64_heads_a_rank() -> None:
    one, four = ({**V4, "num_attention_heads": heads} for heads in (64, 16))
    (wide,), (narrow,) = (
        named(model_spec(config, "m").layers[0], "attn.attn_sink") for config in (one, four)
    )
    assert (wide.rows, narrow.rows) == (64, 16)
    assert wide.rank_multiple == narrow.rank_multiple == 64


@given(st.integers(1, 64), st.sampled_from([1, 2, 4]))
def test_more_latent_means_more_cache_and_more_weight(latent: int, tp: int) -> None:
    small, large = (model_spec({**V2, "kv_lora_rank": size}, "m") for size in (latent, latent + 1))
    engine = EngineSpec(tp=tp)
    assert stage_bytes(small, engine) < stage_bytes(large, engine)
    assert all(cache.latent_size == latent for cache in small.caches if isinstance(cache, LatentAttention))


def without(config: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name != key}


@pytest.mark.parametrize(
    ("config", "key"),
    [
        *((V3, key) for key in ("kv_lora_rank", "q_lora_rank", "qk_rope_head_dim", "n_shared_experts")),
        *((V3, key) for key in ("n_routed_experts", "first_k_dense_replace", "num_experts_per_tok")),
        *((GLM, key) for key in ("index_n_heads", "index_head_dim")),
        *((V4, key) for key in ("compress_ratios", "sliding_window", "hc_mult", "o_groups", "head_dim")),
        (FACTS["small-longcat"]["config"], "zero_expert_num"),
    ],
)
def test_a_missing_key_is_named(config: dict[str, Any], key: str) -> None:
    with pytest.raises(SpecError, match=key):
        model_spec(without(config, key), "m")


@pytest.mark.parametrize(
    ("config", "key", "value"),
    [
        (V3, "kv_lora_rank", -1),
        (V3, "v_head_dim", 0),
        (V3, "num_nextn_predict_layers", 10**9),
        (V3, "moe_layer_freq", 0),
        (GLM, "index_topk_pattern", [1, 2]),
        (GLM, "index_topk_freq", "4"),
        (GLM, "q_lora_rank", None),
        (V4, "compress_ratios", [4, 128]),
        (V4, "compress_ratios", [2] * 43),
        (V4, "compress_ratios", [-4] * 43),
        (V4, "o_groups", 7),
        (V4, "num_hash_layers", -1),
    ],
)
def test_an_absurd_value_is_named(config: dict[str, Any], key: str, value: object) -> None:
    with pytest.raises(SpecError, match=key) as raised:
        model_spec({**config, key: value}, "m")
    assert "\n" not in str(raised.value)


def test_what_is_not_counted_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedModel, match="vision_n_layers"):
        model_spec({**V4, "vision_n_layers": 2}, "m")
    vision = {**K25["vision_config"], "mm_projector_type": "patchmergerv2"}
    with pytest.raises(UnsupportedModel, match="patchmergerv2"):
        model_spec({**K25, "vision_config": vision}, "m")
