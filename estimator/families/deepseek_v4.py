"""DeepSeek-V4: a window of latents in every layer, compressed latents beyond it, hyper-connections.

Source: vLLM 0.32 models/deepseek_v4/{attention,compressor}.py, nvidia/{model,mtp}.py, common/rope.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from estimator.families.common import Body, assemble, layer_count
from estimator.families.mla import stated_size, untied
from estimator.families.parts import gated_experts, gated_mlp, linear, norm, router
from estimator.fields import Fields
from estimator.model import CompressedAttention, Layer, Matrix, ModelSpec, Part
from estimator.spec import SpecError, UnsupportedModel

INDEXED_RATIO: Final = 4
RATIOS: Final = (0, 1, INDEXED_RATIO, 128)
"""0 and 1: the window alone. CompressorStateCache knows no other."""
SINK_ROWS_MULTIPLE: Final = 64
"""FlashMLA decodes 64 or 128 query heads; a rank's sinks are padded to that."""
DRAFT_LAYERS_MAX: Final = 64


def read_deepseek_v4(fields: Fields) -> ModelSpec:
    """Raises SpecError for short compress_ratios, UnsupportedModel for a model with a vision tower."""
    if fields.size("vision_n_layers", default=0, least=0):
        raise UnsupportedModel("not yet supported: DeepSeek-V4 with a vision tower (vision_n_layers)")
    ratios, visited = _ratios(fields), fields.size("num_experts_per_tok")
    hashed = fields.size("num_hash_layers", least=0)
    shapes = [(ratio, index < hashed) for index, ratio in enumerate(ratios)]
    made = {shape: _layer(fields, *shape) for shape in set(shapes)}
    drafts = fields.size("num_nextn_predict_layers", default=0, least=0, most=DRAFT_LAYERS_MAX)
    # a table in float32 for each rotary base: the window's and the compressed latents'
    tables = len({ratio > 1 for ratio in ratios})
    spec = assemble(
        untied(fields),
        Body(
            layers=[made[shape] for shape in shapes],
            draft_layers=(_draft(fields),) * drafts,
            intermediate_size=fields.size("moe_intermediate_size") * visited,
            attention_heads=fields.size("num_attention_heads"),
            rope_size=2 * tables * fields.size("qk_rope_head_dim"),
            experts=fields.size("n_routed_experts"),
            experts_per_token=visited,
        ),
    )
    return replace(spec, after=(*_streams_to_one(fields), *spec.after))


def _ratios(fields: Fields) -> tuple[int, ...]:
    """Tokens a compressed latent stands for, of each layer; the list may go on to the draft layers."""
    count, ratios = layer_count(fields), fields.sizes("compress_ratios")
    if len(ratios) < count:
        raise SpecError(f"compress_ratios must have an entry for each of {count} layers, got {len(ratios)}")
    for ratio in ratios[:count]:
        if ratio not in RATIOS:
            raise SpecError(f"compress_ratios must hold {', '.join(map(str, RATIOS))}, got {ratio}")
    return ratios[:count]


def _layer(fields: Fields, ratio: int, is_hashed: bool) -> Layer:
    hidden = fields.size("hidden_size")
    is_indexed = ratio == INDEXED_RATIO
    cache = CompressedAttention(
        head_size=fields.size("head_dim"),
        rope_size=fields.size("qk_rope_head_dim"),
        window_tokens=fields.size("sliding_window"),
        ratio=ratio,
        index_head_size=fields.size("index_head_dim") if is_indexed else None,
    )
    compressor = _compressor(hidden, ratio, cache.head_size, "attn.compressor") if ratio > 1 else ()
    return Layer(
        caches=(cache,),
        matrices=(
            *_streams(fields, "attn"),
            norm("attn_norm", hidden),
            *_attention(fields),
            *compressor,
            *(_indexer(fields) if is_indexed else ()),
            *_streams(fields, "ffn"),
            norm("ffn_norm", hidden),
            *_mixture(fields, is_hashed),
        ),
    )


def _attention(fields: Fields) -> tuple[Matrix, ...]:
    """One latent is key and value of all heads; the output goes through groups of low rank."""
    hidden, heads, head_size = (
        fields.size(key) for key in ("hidden_size", "num_attention_heads", "head_dim")
    )
    rank, groups = fields.size("q_lora_rank"), fields.size("o_groups")
    if heads * head_size % groups:
        raise SpecError(f"o_groups must divide num_attention_heads x head_dim, got {groups}")
    inner = groups * fields.size("o_lora_rank")
    sinks = norm("attn.attn_sink", heads, split="output", element_bytes=4)
    return (
        replace(sinks, rank_multiple=SINK_ROWS_MULTIPLE),
        *linear("attn.fused_wqa_wkv", (rank, head_size), hidden, "none"),
        norm("attn.q_norm", rank),
        *linear("attn.wq_b", heads * head_size, rank, "output"),
        norm("attn.kv_norm", head_size),
        *linear("attn.wo_a", inner, heads * head_size // groups, "output"),
        *linear("attn.wo_b", hidden, inner, "input"),
    )


def _compressor(hidden: int, ratio: int, head_size: int, name: str) -> tuple[Matrix, ...]:
    """Keys and their gates, of two overlapping windows where the ratio is 4."""
    wide = head_size * (2 if ratio == INDEXED_RATIO else 1)
    return (
        _float32(f"{name}.ape", ratio, wide),
        *linear(f"{name}.fused_wkv_wgate", (wide, wide), hidden, "none", quantised=False),
        norm(f"{name}.norm", head_size),
    )


def _indexer(fields: Fields) -> tuple[Matrix, ...]:
    hidden, heads, head_size = (
        fields.size(key) for key in ("hidden_size", "index_n_heads", "index_head_dim")
    )
    name = "attn.indexer"
    return (
        *linear(f"{name}.wq_b", heads * head_size, fields.size("q_lora_rank"), "none"),
        *linear(f"{name}.weights_proj", heads, hidden, "none", quantised=False),
        *_compressor(hidden, INDEXED_RATIO, head_size, f"{name}.compressor"),
    )


def _mixture(fields: Fields, is_hashed: bool) -> tuple[Matrix, ...]:
    """The first layers choose experts by a table of the vocabulary, the others by a corrected router."""
    hidden, experts, width = (
        fields.size(key) for key in ("hidden_size", "n_routed_experts", "moe_intermediate_size")
    )
    choice: tuple[Matrix, ...] = ()
    if is_hashed:
        choice = (
            _float32("ffn.gate.tid2eid", fields.size("vocab_size"), fields.size("num_experts_per_tok")),
        )
    elif fields.word("topk_method", default="") == "noaux_tc":
        choice = (norm("ffn.gate.e_score_correction_bias", experts, element_bytes=4),)
    shared = stated_size(fields, "n_shared_experts")
    return (
        router(hidden, experts, name="ffn.gate"),
        *choice,
        *gated_experts(hidden, width, experts, name="ffn.experts"),
        *(gated_mlp(hidden, shared * width, name="ffn.shared_experts") if shared else ()),
    )


def _streams(fields: Fields, name: str) -> tuple[Matrix, ...]:
    """Hyper-connections of one block: how hc_mult streams of hidden states are mixed into and out of it."""
    streams = fields.size("hc_mult", most=1024)
    mixes = (2 + streams) * streams
    return (
        _float32(f"hc_{name}_fn", mixes, streams * fields.size("hidden_size")),
        norm(f"hc_{name}_base", mixes, element_bytes=4),
        norm(f"hc_{name}_scale", 3, element_bytes=4),
    )


def _streams_to_one(fields: Fields) -> tuple[Matrix, ...]:
    """Hyper-connections before the output head."""
    streams = fields.size("hc_mult", most=1024)
    return (
        _float32("hc_head_fn", streams, streams * fields.size("hidden_size")),
        norm("hc_head_base", streams, element_bytes=4),
        norm("hc_head_scale", 1, element_bytes=4),
    )


def _draft(fields: Fields) -> Layer:
    """A layer with the window alone that joins the next token's embedding to the hidden state."""
    hidden, layer = fields.size("hidden_size"), _layer(fields, 0, False)
    joins = (
        norm("enorm", hidden),
        norm("hnorm", hidden),
        *linear("e_proj", hidden, hidden, "none"),
        *linear("h_proj", hidden, hidden, "none"),
        *_streams_to_one(fields),
        norm("shared_head.norm", hidden),
    )
    return replace(layer, matrices=(*joins, *layer.matrices))


def _float32(name: str, rows: int, columns: int) -> Matrix:
    """A matrix of 4 bytes an element, whole on every rank and never quantised."""
    parts = (Part(rows=rows),)
    return Matrix(name=name, parts=parts, columns=columns, split="none", quantised=False, element_bytes=4)


READERS: Final[Mapping[str, Callable[[Fields], ModelSpec]]] = {"DeepseekV4ForCausalLM": read_deepseek_v4}
