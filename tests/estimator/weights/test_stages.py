"""What each pipeline stage holds beside its layers, and what parallelism divides."""

from __future__ import annotations

from typing import Any

import pytest

from estimator.engine_spec import EngineSpec, SpeculativeSpec
from estimator.hf_config import model_spec
from estimator.model import Layer, Matrix, ModelSpec, Part
from estimator.weights.count import stage_bytes
from estimator.weights.rank import stages

HIDDEN, VOCAB = 64, 128
SIZES: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": VOCAB,
    "max_position_embeddings": 64,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}
TABLE_BYTES = 2 * HIDDEN * VOCAB


def model_of(architecture: str, **more: Any) -> ModelSpec:
    return model_spec({**SIZES, "architectures": [architecture], "model_type": "m", **more}, "m")


def outside(model: ModelSpec, pp: int) -> list[list[str]]:
    """Names of what each stage holds beside its layers."""
    return [[matrix.name for matrix in stage[0].matrices] for stage in stages(model, EngineSpec(pp=pp))]


def test_the_embedding_is_first_and_the_head_last() -> None:
    assert outside(model_of("LlamaForCausalLM"), 3) == [["embed_tokens"], [], ["norm", "lm_head"]]


def test_a_tied_embedding_is_on_both_ends() -> None:
    tied = model_of("LlamaForCausalLM", tie_word_embeddings=True)
    assert outside(tied, 2) == [["embed_tokens"], ["embed_tokens", "norm"]]
    assert outside(tied, 1) == [["embed_tokens", "norm"]]


def test_a_class_that_never_asks_its_rank_holds_both_ends_on_every_stage() -> None:
    everything = ["embed_tokens", "norm", "lm_head"]
    assert outside(model_of("MixtralForCausalLM"), 3) == [everything] * 3


def test_stages_add_up_to_the_whole_and_what_is_held_twice() -> None:
    for architecture, extra in (
        ("LlamaForCausalLM", 0),
        ("MixtralForCausalLM", 2 * TABLE_BYTES + 2 * HIDDEN),
    ):
        model = model_of(architecture)
        whole = stage_bytes(model, EngineSpec())[0]
        assert sum(stage_bytes(model, EngineSpec(pp=2))) == whole + extra


def test_draft_layers_are_loaded_for_multi_token_prediction_alone_and_on_the_last_stage() -> None:
    base = model_of("LlamaForCausalLM")
    extra = Matrix(name="eh_proj", parts=(Part(rows=HIDDEN),), columns=HIDDEN, split="none")
    model = ModelSpec(
        **{field: getattr(base, field) for field in ModelSpec.__slots__ if field != "draft_layers"},
        draft_layers=(Layer(caches=(), matrices=(extra,)),),
    )
    guesses = {
        method: SpeculativeSpec(method=method, num_speculative_tokens=1)
        for method in ("mtp", "eagle3", "ngram")
    }
    plain = stage_bytes(model, EngineSpec(pp=2))
    assert plain == stage_bytes(model, EngineSpec(pp=2, speculative=guesses["eagle3"]))
    assert plain == stage_bytes(model, EngineSpec(pp=2, speculative=guesses["ngram"]))
    first, last = stage_bytes(model, EngineSpec(pp=2, speculative=guesses["mtp"]))
    assert (first - plain[0], last - plain[1]) == (0, 2 * HIDDEN * HIDDEN)


@pytest.mark.parametrize("tp", [2, 4])
def test_expert_parallelism_moves_experts_and_not_bytes(tp: int) -> None:
    model = model_of("MixtralForCausalLM")
    by_width, by_expert = (
        stage_bytes(model, EngineSpec(tp=tp, enable_expert_parallel=flag))[0] for flag in (False, True)
    )
    assert by_width == by_expert  # 8 experts are a multiple of tp


def test_expert_parallelism_keeps_an_expert_more_where_they_do_not_divide() -> None:
    model = model_of("MixtralForCausalLM", num_local_experts=6)
    one_expert = 2 * 3 * 128 * HIDDEN
    by_width, by_expert = (
        stage_bytes(model, EngineSpec(tp=4, enable_expert_parallel=flag))[0] for flag in (False, True)
    )
    assert by_expert - by_width == 4 * one_expert // 2  # 2 experts against 6/4, in 4 layers
