"""What every reader needs of a config.json: dtype, context length, head sizes, embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from estimator.families.parts import Heads, norm, vocabulary
from estimator.fields import LAYERS_MAX, Fields, shown
from estimator.model import Layer, Matrix, ModelSpec
from estimator.quantisation import read_quantisation
from estimator.spec import SpecError, UnsupportedModel

WEIGHT_DTYPES: Final[Mapping[str, str]] = {
    "bfloat16": "bfloat16",
    "float16": "float16",
    "half": "float16",
    "float32": "bfloat16",  # vLLM and LMDeploy load float32 checkpoints in 16 bits
    "float": "bfloat16",
}
CONTEXT_KEYS: Final = (
    *("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length"),
    *("max_sequence_length", "max_target_positions"),
)
UNSCALED_ROPE: Final = ("default", "llama3", "yarn", "longrope", "su", "mrope", "proportional")
"""Rope kinds whose max_position_embeddings is the served length already (vLLM 0.32 config/model.py)."""
SCALED_ROPE: Final = ("linear", "dynamic")


def read_heads(fields: Fields, *, kv_key: str = "num_key_value_heads") -> Heads:
    """Raises SpecError where heads do not share KV heads evenly."""
    heads = fields.size("num_attention_heads")
    kv_heads = fields.size(kv_key, default=heads)
    hidden = fields.size("hidden_size")
    head_size = fields.size("head_dim", default=hidden // heads if hidden % heads == 0 else None)
    if kv_heads > heads or heads % kv_heads != 0:
        raise SpecError(f"{fields.name}: {heads} attention heads do not share {kv_heads} KV heads evenly")
    return Heads(heads=heads, kv_heads=kv_heads, head_size=head_size)


def layer_count(fields: Fields) -> int:
    return fields.size("num_hidden_layers", "n_layer", most=LAYERS_MAX)


def read_dtype(fields: Fields) -> str:
    """The dtype vLLM gives the model with --dtype auto; nested configs fall back to the outer one."""
    for source in (fields.values, fields.outer):
        named = source.get("dtype") or source.get("torch_dtype")
        if named is not None:
            dtype = WEIGHT_DTYPES.get(str(named).removeprefix("torch."))
            if dtype is None:
                raise UnsupportedModel(f"not yet supported: weights of dtype {shown(named)}")
            return dtype
    return "bfloat16"


def context_tokens_max(fields: Fields) -> int:
    """Longest sequence served by default. Source: vLLM 0.32 config/model.py _get_and_verify_max_len."""
    tokens = min(
        fields.size(key) for key in CONTEXT_KEYS if fields.has(key) or key == "max_position_embeddings"
    )
    rope = fields.inner("rope_scaling" if fields.has("rope_scaling") else "rope_parameters")
    kind = rope.word("rope_type", default=rope.word("type", default="default"))
    if kind in UNSCALED_ROPE:
        return tokens
    if kind not in SCALED_ROPE:
        raise UnsupportedModel(f"not yet supported: rope_scaling of type {shown(kind)}")
    return int(tokens * rope.number("factor", least=1, most=1024))


def context_tokens_default(fields: Fields) -> int | None:
    """With longrope, the length before it was stretched. Source: as context_tokens_max."""
    rope = fields.inner("rope_scaling" if fields.has("rope_scaling") else "rope_parameters")
    if rope.word("rope_type", default=rope.word("type", default="default")) not in ("longrope", "su"):
        return None
    key = "original_max_position_embeddings"
    return (fields if fields.has(key) else rope).size(key, default=context_tokens_max(fields))


def tied(fields: Fields) -> bool:
    """Whether the output head is the embedding; multimodal configs say it outside or inside."""
    outer = Fields(fields.outer, fields.outer, fields.name)
    return fields.flag("tie_word_embeddings", default=outer.flag("tie_word_embeddings"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """What a reader found beside the fields that all models share."""

    layers: Sequence[Layer]
    intermediate_size: int
    attention_heads: int
    rope_size: int = 0
    """Elements of a position in the rotary table."""
    draft_layers: Sequence[Layer] = ()
    tower: Sequence[Matrix] = ()
    """Vision or audio encoder and projector: on the first stage."""
    experts: int = 0
    experts_per_token: int = 0
    cautions: Sequence[str] = ()


def assemble(fields: Fields, body: Body) -> ModelSpec:
    """The ModelSpec of a decoder-only model: embedding, layers, final norm, output head."""
    hidden, vocab = fields.size("hidden_size"), fields.size("vocab_size")
    is_tied, context = tied(fields), context_tokens_max(fields)
    head = () if is_tied else (vocabulary("lm_head", vocab, hidden),)
    return ModelSpec(
        name=fields.name,
        architecture=str(fields.outer["architectures"][0]),
        model_type=str(fields.outer.get("model_type")),
        dtype=read_dtype(fields),
        quantisation=read_quantisation(fields),
        hidden_size=hidden,
        intermediate_size=body.intermediate_size,
        vocab_size=vocab,
        attention_heads=body.attention_heads,
        context_tokens_max=context,
        context_tokens_default=context_tokens_default(fields),
        tie_word_embeddings=is_tied,
        layers=tuple(body.layers),
        draft_layers=tuple(body.draft_layers),
        before=(vocabulary("embed_tokens", vocab, hidden), *body.tower),
        after=(norm("norm", hidden), *head),
        experts=body.experts,
        experts_per_token=body.experts_per_token,
        rope_elements=context * body.rope_size,
        cautions=tuple(body.cautions),
    )
