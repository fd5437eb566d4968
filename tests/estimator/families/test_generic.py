"""An unknown architecture is read with its assumptions named, or refused with the key that betrays it."""

from __future__ import annotations

from typing import Any

import pytest

from estimator.hf_config import model_spec
from estimator.model import Attention
from estimator.spec import SpecError, UnsupportedModel

PLAIN: dict[str, Any] = {
    "architectures": ["NovelForCausalLM"],
    "model_type": "novel",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 1024,
    "max_position_embeddings": 4096,
}
MIXTURE = {**PLAIN, "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


def test_a_plain_config_keeps_full_attention_in_every_layer() -> None:
    spec = model_spec(PLAIN, "m")
    assert set(spec.caches) == {Attention(kv_heads=2, head_size=32, head_size_v=32)}
    assert len(spec.layers) == 3


def test_the_same_keys_under_a_known_name_are_the_same_model() -> None:
    known = model_spec({**PLAIN, "architectures": ["LlamaForCausalLM"]}, "m")
    assert model_spec(PLAIN, "m").layers == known.layers
    assert known.cautions == ()


def test_every_reading_of_an_unknown_name_says_so() -> None:
    cautions = " ".join(model_spec(PLAIN, "m").cautions)
    assert "NovelForCausalLM is not a known architecture" in cautions
    assert "gated MLP" in cautions
    assert "num_key_value_heads" not in cautions


@pytest.mark.parametrize(
    ("key", "assumed"), [("num_key_value_heads", "own KV head"), ("head_dim", "hidden_size /")]
)
def test_a_default_that_decides_the_cache_is_a_caution(key: str, assumed: str) -> None:
    config = {name: value for name, value in PLAIN.items() if name != key}
    assert any(assumed in caution for caution in model_spec(config, "m").cautions)


def test_a_mixture_is_read_by_whatever_its_keys_are_called() -> None:
    spec = model_spec(MIXTURE, "m")
    assert (spec.experts, spec.experts_per_token) == (8, 2)
    renamed = {
        key: value for key, value in MIXTURE.items() if key not in ("n_routed_experts", "num_experts_per_tok")
    }
    assert model_spec({**renamed, "moe_num_experts": 8, "moe_topk": 2}, "m").layers == spec.layers
    assert any("gated experts" in caution for caution in spec.cautions)


@pytest.mark.parametrize(
    ("extra", "key"),
    [
        ({"kv_lora_rank": 512}, "kv_lora_rank"),
        ({"q_lora_rank": 512}, "q_lora_rank"),
        ({"compress_ratios": [4]}, "compress_ratios"),
        ({"index_topk": 2048}, "index_topk"),
        ({"vision_config": {"depth": 1}}, "vision_config"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder"),
        ({"attention_chunk_size": 8192}, "attention_chunk_size"),
        ({"linear_num_key_heads": 16}, "linear_num_key_heads"),
        ({"linear_attn_config": {"a": 1}}, "linear_attn_config"),
        ({"hybrid_override_pattern": "M*"}, "hybrid_override_pattern"),
        ({"mamba_d_state": 16}, "mamba_d_state"),
        ({"state_size": 128}, "state_size"),
        ({"block_configs": [{"a": 1}]}, "block_configs"),
        ({"num_kv_shared_layers": 2}, "num_kv_shared_layers"),
        ({"num_kv_heads": 1}, "num_kv_heads"),
        ({"multi_query": True}, "multi_query"),
        ({"sliding_window": 128}, "sliding_window"),
        ({"window_pattern": "LG"}, "window_pattern"),
        ({"layer_types": ["full_attention", "chunked_attention", "x"]}, "layer_types"),
        ({"text_config": {**PLAIN, "mamba_d_conv": 4}}, "mamba_d_conv"),
    ],
)
def test_a_key_of_another_cache_layout_refuses_the_model_by_that_key(extra: dict[str, Any], key: str) -> None:
    with pytest.raises(UnsupportedModel, match=rf"NovelForCausalLM.*\({key}\)"):
        model_spec({**PLAIN, **extra}, "m")


@pytest.mark.parametrize(
    "idle",
    [
        {"sliding_window": None},
        {"sliding_window": 4096, "use_sliding_window": False},
        {"use_sliding_window": True, "max_window_layers": 28},
        {"kv_lora_rank": None, "state_size": 0},
        {"layer_types": ["full_attention"] * 3},
        {"is_encoder_decoder": False, "add_cross_attention": False, "chunk_size_feed_forward": 0},
    ],
)
def test_a_key_that_is_switched_off_betrays_nothing(idle: dict[str, Any]) -> None:
    assert model_spec({**PLAIN, **idle}, "m").layers == model_spec(PLAIN, "m").layers


@pytest.mark.parametrize(
    "architecture", ["NovelForSequenceClassification", "NovelForConditionalGeneration", "Novel"]
)
def test_what_does_not_generate_text_is_refused_by_name(architecture: str) -> None:
    with pytest.raises(UnsupportedModel, match=f"{architecture}.*no text generator"):
        model_spec({**PLAIN, "architectures": [architecture]}, "m")


@pytest.mark.parametrize("key", ["hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size"])
def test_a_size_that_decides_the_bytes_is_never_assumed(key: str) -> None:
    config = {name: value for name, value in PLAIN.items() if name != key}
    with pytest.raises(SpecError, match=f"the config has no {key}"):
        model_spec(config, "m")
