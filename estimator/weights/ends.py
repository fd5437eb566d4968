"""Which of a model's ends every pipeline stage holds, because its class in vLLM makes them without asking."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from estimator.model import Matrix, ModelSpec

End = Literal["embedding", "norm", "head"]
HEAD: Final = "lm_head"
EVERYTHING: Final[tuple[End, ...]] = ("embedding", "norm", "head")
ON_EVERY_STAGE: Final[Mapping[str, tuple[End, ...]]] = {
    **dict.fromkeys(
        (
            *("MixtralForCausalLM", "Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM", "OlmoeForCausalLM"),
            *("GptOssForCausalLM", "NemotronHForCausalLM", "MambaForCausalLM", "Mamba2ForCausalLM"),
            *("JambaForCausalLM", "GraniteMoeHybridForCausalLM", "Qwen3VLMoeForConditionalGeneration"),
            *("GemmaForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM", "Gemma4ForCausalLM"),
            *("Gemma3ForConditionalGeneration", "Gemma4ForConditionalGeneration"),
        ),
        EVERYTHING,
    ),
    "Qwen3NextForCausalLM": ("embedding", "head"),
    **dict.fromkeys(
        (
            *("Qwen3_5ForCausalLM", "Qwen3_5ForConditionalGeneration"),
            *("Qwen3_5MoeForCausalLM", "Qwen3_5MoeForConditionalGeneration"),
            *("Lfm2ForCausalLM", "Lfm2MoeForCausalLM"),
        ),
        ("embedding",),
    ),
}
"""By architecture. Source: __init__ of the model classes in vLLM 0.32 model_executor/models, which elsewhere
ask get_pp_group().is_first_rank or is_last_rank."""


def outside_layers(model: ModelSpec, *, is_first: bool, is_last: bool) -> tuple[Matrix, ...]:
    """What a stage holds beside its layers. A tied embedding is the head too, so it is on both ends."""
    everywhere = ON_EVERY_STAGE.get(model.architecture, ())
    embedding, tower = model.before[:1], model.before[1:]
    head = tuple(matrix for matrix in model.after if matrix.name == HEAD)
    norms = tuple(matrix for matrix in model.after if matrix.name != HEAD)
    return (
        *(embedding if is_first or "embedding" in everywhere or _is_tied_end(model, is_last) else ()),
        *(tower if is_first else ()),
        *(norms if is_last or "norm" in everywhere else ()),
        *(head if is_last or "head" in everywhere else ()),
    )


def _is_tied_end(model: ModelSpec, is_last: bool) -> bool:
    return is_last and model.tie_word_embeddings
