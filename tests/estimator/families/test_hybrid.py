"""Models with recurrent state: caches and parameters are those of vLLM's own classes on one rank."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from estimator.hf_config import model_spec
from estimator.model import Attention, Cache, LatentAttention, Matrix, ModelSpec, RecurrentState
from estimator.spec import SpecError, UnsupportedModel

FACTS: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "fixtures/configs/hybrid.json").read_text(encoding="utf-8")
)["models"]
FALCON = FACTS["small-falcon_h1"]["config"]
GRANITE = FACTS["small-granite"]["config"]
JAMBA = FACTS["small-jamba"]["config"]
KIMI = FACTS["kimi-linear-48b-a3b"]["config"]
K3 = FACTS["Kimi-K3"]["config"]
LFM2 = FACTS["small-lfm2"]["config"]
LIGHTNING = FACTS["NVIDIA-Nemotron-3.5-Lightning-30B-A3B-NVFP4"]["config"]
NEMOTRON = FACTS["small-nemotron"]["config"]
QWEN3_5 = FACTS["Qwen3.5-27B"]["config"]
QWEN_NEXT = FACTS["small-qwen3_next"]["config"]
ZAMBA = FACTS["small-zamba2"]["config"]


@pytest.fixture(params=FACTS)
def model(request: pytest.FixtureRequest) -> tuple[dict[str, Any], ModelSpec]:
    fact = FACTS[request.param]
    return fact, model_spec(fact["config"], request.param)


def channels(state: RecurrentState) -> int:
    """Channels of the convolution. Source: vLLM mamba_utils.py MambaStateShapeCalculator."""
    wide, keys = state.heads * state.head_size, state.groups * state.state_size
    return wide + {"kda": 2 * wide, "gdn": 2 * keys, "mamba2": 2 * keys}.get(state.mixer, 0)


def shapes(state: RecurrentState) -> list[list[int]]:
    recurrent = {
        "mamba1": [[state.heads, state.state_size]],
        "short_conv": [],
    }.get(state.mixer, [[state.heads, state.head_size, state.state_size]])
    return [[state.conv_kernel - 1, channels(state)], *recurrent]


def as_vllm(cache: Cache, dtype: str) -> list[Any]:
    if isinstance(cache, RecurrentState):
        named = dtype if cache.state_dtype == "auto" else cache.state_dtype
        return ["state", shapes(cache), named, int(cache.prefill_checkpoint)]
    if isinstance(cache, LatentAttention):
        return ["latent", [1, cache.latent_size + cache.rope_size]]
    assert isinstance(cache, Attention)
    return ["attention", [cache.kv_heads, cache.head_size]]


def padded(matrices: list[Matrix]) -> int:
    return sum(
        (matrix.rows + -matrix.rows % matrix.pad_rows) * matrix.columns * matrix.experts
        for matrix in matrices
    )


def test_every_cache_is_the_one_vllm_allocates(model: tuple[dict[str, Any], ModelSpec]) -> None:
    fact, spec = model
    ours = Counter(json.dumps(as_vllm(cache, spec.dtype)) for cache in spec.caches)
    assert ours == {json.dumps(cache): count for count, cache in fact["caches"]}


def test_every_parameter_is_counted_in_its_own_dtype(model: tuple[dict[str, Any], ModelSpec]) -> None:
    fact, spec = model
    matrices = list(spec.matrices)
    if "mxfp4_bytes" in fact:  # two weights a byte, and a byte of scale for 32
        experts = sum(matrix.elements for matrix in matrices if matrix.experts > 1)
        assert experts // 2 + experts // 32 == fact["mxfp4_bytes"]
        matrices = [matrix for matrix in matrices if matrix.experts == 1]
    assert padded(matrices) == fact["parameters"]
    assert sum(matrix.elements for matrix in matrices if matrix.element_bytes == 4) == fact["float32"]


def test_a_pattern_puts_each_layer_where_its_letter_is() -> None:
    spec = model_spec(NEMOTRON, "m")
    kinds = [layer.caches[0].__class__.__name__ if layer.caches else "" for layer in spec.layers]
    assert kinds == ["RecurrentState", "", "Attention", "RecurrentState", ""]


def test_words_and_letters_name_the_same_layers() -> None:
    words = ["linear_attention", "mlp", "full_attention", "mamba", "mlp"]
    config = {key: value for key, value in NEMOTRON.items() if key != "hybrid_override_pattern"}
    assert model_spec({**config, "layers_block_type": words}, "m") == model_spec(NEMOTRON, "m")


def test_without_layer_types_every_fourth_layer_of_qwen_is_full_attention() -> None:
    text = {key: value for key, value in QWEN3_5["text_config"].items() if key != "layer_types"}
    assert model_spec({**QWEN3_5, "text_config": text}, "m") == model_spec(QWEN3_5, "m")
    layers = model_spec(QWEN_NEXT, "m").layers
    assert [isinstance(layer.caches[0], Attention) for layer in layers] == [False, False, False, True]


def test_the_state_is_kept_in_the_dtype_that_the_family_reads() -> None:
    def dtype(config: dict[str, Any]) -> str:
        state = next(cache for cache in model_spec(config, "m").caches if isinstance(cache, RecurrentState))
        return state.state_dtype

    text = {key: value for key, value in QWEN3_5["text_config"].items() if key != "mamba_ssm_dtype"}
    assert dtype(QWEN3_5) == "float32"
    assert dtype({**QWEN3_5, "text_config": text}) == "auto"
    assert dtype({**QWEN_NEXT, "mamba_ssm_dtype": "float32"}) == "auto"  # Qwen3-Next reads no such key
    assert dtype({**NEMOTRON, "mamba_ssm_cache_dtype": "float16"}) == "float16"
    assert dtype(KIMI) == "float32"


def test_only_a_bounded_full_rank_gate_lets_kda_checkpoint_a_prompt() -> None:
    def checkpoints(**changed: Any) -> bool:
        inner = K3["text_config"]["linear_attn_config"]
        text = {**K3["text_config"], "linear_attn_config": {**inner, **changed}}
        spec = model_spec({**K3, "text_config": text}, "m")
        assert (
            any("FlashKDA" in caution for caution in spec.cautions)
            == spec.layers[0].caches[0].prefill_checkpoint
        )
        return spec.layers[0].caches[0].prefill_checkpoint

    assert checkpoints()
    assert not checkpoints(gate_lower_bound=None)
    assert not checkpoints(head_dim=64)
    assert not checkpoints(use_full_rank_gate=False)


def test_a_parallel_hybrid_layer_keeps_both_caches() -> None:
    for layer in model_spec(FALCON, "m").layers:
        assert [type(cache) for cache in layer.caches] == [Attention, RecurrentState]


def test_granite_without_a_mamba_layer_needs_no_mamba_sizes() -> None:
    config = {**GRANITE, "layer_types": ["attention"] * 4, "mamba_d_head": 7}
    assert not model_spec(config, "m").has_state


def test_a_shared_block_is_counted_once_for_all_its_layers() -> None:
    layers = model_spec(ZAMBA, "m").layers
    first, second, third = (
        sum(matrix.name == "self_attn.qkv_proj" for matrix in layers[index].matrices) for index in (1, 3, 6)
    )
    assert (first, second, third) == (1, 1, 0)  # num_mem_blocks 2


def test_a_single_group_of_b_and_c_is_on_every_rank() -> None:
    mixer = next(matrix for matrix in model_spec(FALCON, "m").matrices if matrix.name == "mamba.in_proj")
    assert [part.kv_heads for part in mixer.parts] == [None, None, 1, 1, None]


def test_kimi_k3_rounds_a_ranks_rows_and_keeps_whole_a_tower_whose_heads_do_not_divide() -> None:
    """12 heads of the tower, and rows of one rank in multiples of 16. Source: vLLM kda.py, vision.py."""
    spec = model_spec(K3, "m")
    merged = next(matrix for matrix in spec.layers[0].matrices if matrix.name == "self_attn.in_proj_qkvgfab")
    tower = {matrix.heads for matrix in spec.before if matrix.name.startswith("vision_tower.blocks.")}
    assert merged.rank_multiple == 16
    assert tower == {12}
    linear = next(matrix for matrix in model_spec(KIMI, "m").layers[0].matrices if "in_proj" in matrix.name)
    assert linear.rank_multiple == 1


@pytest.mark.parametrize(("config", "count"), [(QWEN3_5, 1), (QWEN_NEXT, 1), (NEMOTRON, 0), (LIGHTNING, 2)])
def test_draft_layers_are_apart_from_the_model(config: dict[str, Any], count: int) -> None:
    assert len(model_spec(config, "m").draft_layers) == count


@pytest.mark.parametrize("config", [QWEN_NEXT, NEMOTRON, JAMBA, KIMI])
def test_an_output_head_that_vllm_never_ties_is_counted(config: dict[str, Any]) -> None:
    tied, untied = (model_spec({**config, "tie_word_embeddings": tie}, "m") for tie in (True, False))
    assert tied.parameters == untied.parameters


@pytest.mark.parametrize(
    ("config", "change", "sentence"),
    [
        (QWEN_NEXT, {"layer_types": ["linear_attention", "sliding"] * 2}, "layer_types must hold"),
        (QWEN_NEXT, {"layer_types": ["full_attention"]}, "layer_types names 1 layers"),
        (QWEN_NEXT, {"linear_num_value_heads": 3}, "linear_num_value_heads 3 is no multiple"),
        (QWEN_NEXT, {"linear_conv_kernel_dim": 1}, "linear_conv_kernel_dim must be a whole number from 2"),
        (QWEN_NEXT, {"num_experts_per_tok": None}, "the config has no num_experts_per_tok"),
        (NEMOTRON, {"hybrid_override_pattern": "M?*"}, "hybrid_override_pattern must be made of"),
        (NEMOTRON, {"hybrid_override_pattern": "M" * 2001}, "at most 2,000 layers"),
        (NEMOTRON, {"hybrid_override_pattern": None}, "no layers_block_type"),
        (NEMOTRON, {"mamba_num_heads": 9}, "9 Mamba heads do not share 2 groups"),
        (NEMOTRON, {"mamba_ssm_cache_dtype": "int8"}, "mamba_ssm_cache_dtype 'int8'"),
        (KIMI, {"linear_attn_config": None}, "no linear_attn_config"),
        (KIMI, {"mla_use_nope": False}, "mla_use_nope"),
        (KIMI, {"linear_attn_config": {"kda_layers": "all"}}, "kda_layers must be a list"),
        (GRANITE, {"layer_types": ["mamba"]}, "layer_types names 1 layers"),
        (GRANITE, {"mamba_d_head": 7}, "mamba_n_heads 8 x mamba_d_head 7"),
        (ZAMBA, {"layers_block_type": None}, "layers_block_type names 0 layers"),
        (ZAMBA, {"n_mamba_heads": 7}, "n_mamba_heads 7 does not divide"),
        (LFM2, {"layer_types": ["conv", "conv", "conv", "x"]}, "layer_types must hold"),
        (FACTS["mamba2-2.7b"]["config"], {"num_heads": 79}, "num_heads 79 x head_dim 64"),
    ],
)
def test_a_field_that_cannot_be_is_one_sentence_with_its_name(
    config: dict[str, Any], change: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(SpecError) as error:
        model_spec({**config, **change}, "m")
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "architecture", ["BambaForCausalLM", "MiniMaxText01ForCausalLM", "NemotronH_Nano_VL_V2"]
)
def test_a_hybrid_that_cannot_be_exact_is_refused_by_name(architecture: str) -> None:
    with pytest.raises(UnsupportedModel, match=architecture):
        model_spec({**NEMOTRON, "architectures": [architecture]}, "m")
