"""NemotronH (Nemotron 3 Nano, Super, Ultra): Mamba2, attention, MLP and mixture as layers of their own.

Source: vLLM 0.32 model_executor/models/{nemotron_h,nemotron_h_mtp}.py, transformers' NemotronHConfig.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from estimator.families.common import Body, assemble, read_heads
from estimator.families.mixers import Mamba2, mamba2, state_dtype, with_defaults
from estimator.families.parts import attention, linear, norm, router
from estimator.fields import LAYERS_MAX, Fields, shown
from estimator.model import Layer, Matrix, ModelSpec, Part
from estimator.spec import SpecError

LETTERS: Final[Mapping[str, str]] = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}
"""hybrid_override_pattern, a letter a layer."""
KINDS: Final[Mapping[str, str]] = {
    **{kind: kind for kind in LETTERS.values()},
    "linear_attention": "mamba",
    "full_attention": "attention",
}
"""layers_block_type, old words and new."""
DEFAULTS: Final[Mapping[str, Any]] = {
    "head_dim": 128,
    "num_key_value_heads": 8,
    "max_position_embeddings": 4096,
    "intermediate_size": 21504,
    "mamba_num_heads": 128,
    "mamba_head_dim": 64,
    "n_groups": 8,
    "ssm_state_size": 128,
    "conv_kernel": 4,
    "use_conv_bias": True,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 7688,
    "moe_shared_expert_intermediate_size": 7688,
}
"""What NemotronHConfig fills in."""
RENAMED: Final = (
    ("mamba_n_groups", "n_groups"),
    ("mamba_d_conv", "conv_kernel"),
    ("mamba_conv_bias", "use_conv_bias"),
    ("num_local_experts", "n_routed_experts"),
)
"""Older spellings, which win."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kinds:
    """The layer of each kind that the model has, made once."""

    layers: Mapping[str, Layer]

    def row(self, kinds: Sequence[str]) -> tuple[Layer, ...]:
        return tuple(self.layers[kind] for kind in kinds)


def read_nemotron_h(fields: Fields) -> ModelSpec:
    """Raises SpecError for a pattern with an unknown letter."""
    renamed = {new: fields.values[old] for old, new in RENAMED if fields.has(old)}
    fields = with_defaults(
        replace(fields, values={**fields.values, **renamed}), DEFAULTS, tie_word_embeddings=False
    )
    kinds = block_kinds(fields, "layers_block_type", "hybrid_override_pattern")
    if not kinds:
        raise SpecError("the config has no layers_block_type; give the model's full config.json")
    drafts: tuple[str, ...] = ()
    if fields.size("num_nextn_predict_layers", default=0, least=0, most=64):
        drafts = block_kinds(fields, "mtp_layers_block_type", "mtp_hybrid_override_pattern")
        drafts = drafts or ("attention", "moe")
    made = _Kinds(layers={kind: MAKERS[kind](fields) for kind in {*kinds, *drafts}})
    is_sparse = "moe" in kinds
    visited = fields.size("num_experts_per_tok") if is_sparse else 0
    width = fields.size("moe_intermediate_size") * visited
    return assemble(
        fields,
        Body(
            layers=made.row(kinds),
            draft_layers=_drafts(fields, made.row(drafts)),
            intermediate_size=max(width, fields.size("intermediate_size") if "mlp" in kinds else 1),
            attention_heads=fields.size("num_attention_heads") if "attention" in kinds else 0,
            experts=fields.size("n_routed_experts") if is_sparse else 0,
            experts_per_token=visited,
        ),
    )


def block_kinds(fields: Fields, list_key: str, pattern_key: str) -> tuple[str, ...]:
    """The kind of every layer, from the list of words or from the pattern of letters; the list wins."""
    if fields.has(list_key):
        words, known, key = fields.words(list_key), KINDS, list_key
    else:
        pattern = fields.word(pattern_key, default="")
        if len(pattern) > LAYERS_MAX:
            raise SpecError(f"{pattern_key} must name at most {LAYERS_MAX:,} layers, got {len(pattern):,}")
        words, known, key = tuple(pattern), LETTERS, pattern_key
    for word in words:
        if word not in known:
            raise SpecError(f"{key} must be made of {', '.join(known)}, got {shown(word)}")
    return tuple(known[word] for word in words)


def _mamba(fields: Fields) -> Layer:
    sizes = Mamba2(
        heads=fields.size("mamba_num_heads"),
        head_size=fields.size("mamba_head_dim"),
        groups=fields.size("n_groups"),
        state_size=fields.size("ssm_state_size"),
        conv_kernel=fields.size("conv_kernel", least=2, most=1024),
        conv_bias=fields.flag("use_conv_bias"),
        bias=fields.flag("use_bias"),
        state_dtype=state_dtype(fields, "mamba_ssm_cache_dtype", default="float32"),
    )
    mixer = mamba2(fields.size("hidden_size"), sizes)
    return Layer(caches=(mixer.state,), matrices=(*mixer.matrices, _norm(fields)))


def _attention(fields: Fields) -> Layer:
    heads = read_heads(fields)
    window = fields.size("sliding_window") if fields.has("sliding_window") else None
    matrices = attention(fields.size("hidden_size"), heads, name="mixer")
    return Layer(caches=(heads.cache(window_tokens=window),), matrices=(*matrices, _norm(fields)))


def _mlp(fields: Fields) -> Layer:
    matrices = _ungated(fields, "mixer", fields.size("intermediate_size"), bias=fields.flag("mlp_bias"))
    return Layer(caches=(), matrices=(*matrices, _norm(fields)))


def _ungated(fields: Fields, name: str, width: int, *, bias: bool = False) -> tuple[Matrix, ...]:
    """up and down without a gate. Source: nemotron_h.py NemotronHMLP."""
    hidden = fields.size("hidden_size")
    return (
        *linear(f"{name}.up_proj", width, hidden, "output", bias=bias),
        *linear(f"{name}.down_proj", hidden, width, "input", bias=bias),
    )


def _moe(fields: Fields) -> Layer:
    """Experts without a gate, of a smaller hidden size where it is latent. Source: NemotronHMoE."""
    hidden, experts = fields.size("hidden_size"), fields.size("n_routed_experts")
    latent = fields.size("moe_latent_size", default=hidden)
    width, bias = fields.size("moe_intermediate_size"), fields.flag("mlp_bias")
    shared = fields.size("n_shared_experts", least=0) * fields.size("moe_shared_expert_intermediate_size")
    around: tuple[Matrix, ...] = ()
    if fields.has("moe_latent_size"):
        around = (
            *linear("mixer.fc1_latent_proj", latent, hidden, "none", bias=bias),
            *linear("mixer.fc2_latent_proj", hidden, latent, "none", bias=bias),
        )
    matrices = (
        router(hidden, experts, name="mixer.gate"),
        norm("mixer.gate.e_score_correction_bias", experts, element_bytes=4),
        *(_ungated(fields, "mixer.shared_experts", shared) if shared else ()),
        *around,
        Matrix(
            name="mixer.experts.up_proj",
            parts=(Part(rows=width),),
            columns=latent,
            split="output",
            experts=experts,
        ),
        Matrix(
            name="mixer.experts.down_proj",
            parts=(Part(rows=latent),),
            columns=width,
            split="input",
            experts=experts,
        ),
    )
    return Layer(caches=(), matrices=(*matrices, _norm(fields)))


def _norm(fields: Fields) -> Matrix:
    return norm("norm", fields.size("hidden_size"))


def _drafts(fields: Fields, layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """The first joins embedding and hidden state, the last has one more norm. Source: nemotron_h_mtp.py."""
    if not layers:
        return ()
    hidden = fields.size("hidden_size")
    joins = (
        norm("enorm", hidden),
        norm("hnorm", hidden),
        *linear("eh_proj", hidden, 2 * hidden, "output"),
    )
    first = replace(layers[0], matrices=(*joins, *layers[0].matrices))
    layers = (first, *layers[1:])
    last = replace(layers[-1], matrices=(*layers[-1].matrices, norm("final_layernorm", hidden)))
    return *layers[:-1], last


MAKERS: Final[Mapping[str, Callable[[Fields], Layer]]] = {
    "mamba": _mamba,
    "attention": _attention,
    "mlp": _mlp,
    "moe": _moe,
}
READERS: Final[Mapping[str, Callable[[Fields], ModelSpec]]] = {"NemotronHForCausalLM": read_nemotron_h}
