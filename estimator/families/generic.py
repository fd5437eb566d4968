"""An architecture nobody has proven: read as a plain decoder with every assumption named, or refused.

A key that betrays another cache layout refuses the model: no number is better than a wrong one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from estimator.families.dense import Dense, read_dense
from estimator.families.sparse import Sparse, read_sparse
from estimator.fields import Fields
from estimator.model import ModelSpec
from estimator.spec import UnsupportedModel

GENERATORS: Final = ("ForCausalLM", "LMHeadModel")
"""How architectures that generate text from text alone are named."""
SIGNS: Final = tuple(
    (re.compile(pattern), words)
    for pattern, words in (
        (r"lora_rank|latent", "multi-head latent attention"),
        (r"compress", "compressed attention"),
        (r"^index_|indexer", "sparse attention with an index"),
        (r"vision|audio|image|video|modal", "several modalities"),
        (r"^is_encoder_decoder$|^encoder_layers$|cross_attention", "an encoder and cross attention"),
        (r"attention_chunk|chunked_attention", "chunked attention"),
        (r"linear_(num|key|value|attn|conv|attention)|delta_net|retention", "linear-attention state"),
        (r"mamba|ssm|rwkv|recurrent|state_size|conv_(kernel|l_cache|dim)|d_conv", "recurrent state"),
        (r"hybrid|block_configs|blocks?_type|layer_pattern|^attn_(layer|type)", "layers that differ"),
        (r"kv_shar|share_kv|shared_kv|^cla_|yoco", "layers that share a KV cache"),
        (r"kv_heads|_kv$|kv_n_|multi_query|query_group|kv_group", "KV heads under another key"),
        (r"window(?!_layers$)", "sliding-window attention"),
    )
)
"""Keys that betray a cache layout we cannot know, with the word a reader knows."""
EXPERT_KEYS: Final = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
WIDTH_KEYS: Final = ("moe_intermediate_size", "expert_intermediate_size", "intermediate_size")
VISITED_KEYS: Final = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "moe_topk",
    "moe_top_k",
    "num_selected_experts",
)
MLP_KEYS: Final = ("intermediate_size", "ffn_hidden_size", "ffn_dim")
SHARED_KEYS: Final = (
    ("shared_expert_intermediate_size", False),
    ("n_shared_experts", True),
    ("num_shared_experts", True),
)
"""A width, or a count of experts of the routed width."""


def read_generic(fields: Fields) -> ModelSpec:
    """A plain decoder, dense or a gated mixture, its cautions naming what was assumed.

    Raises UnsupportedModel naming the keys of another layout, SpecError for a missing or absurd field.
    """
    architecture = str(fields.outer["architectures"][0])
    if not architecture.endswith(GENERATORS):
        raise UnsupportedModel(
            f"not yet supported: architecture {architecture!r}, which is no text generator we know "
            f"(those are named ...{' or ...'.join(GENERATORS)})"
        )
    signs = list(dict.fromkeys(_signs(fields)))
    if signs:
        raise UnsupportedModel(
            f"not yet supported: architecture {architecture!r}, whose config names {'; '.join(signs)}"
        )
    spec = _read_mixture(fields) if _first(fields, EXPERT_KEYS) else _read_plain(fields)
    return replace(spec, cautions=(*spec.cautions, *_cautions(fields, architecture)))


def _read_plain(fields: Fields) -> ModelSpec:
    return read_dense(
        _renamed(fields, intermediate_size=MLP_KEYS),
        Dense(output_bias=True, mlp_bias=True, qk_norm=_qk_norm(fields)),
    )


def _read_mixture(fields: Fields) -> ModelSpec:
    fields = _renamed(fields, num_experts=EXPERT_KEYS, num_experts_per_tok=VISITED_KEYS)
    shared, counts = next(((key, counts) for key, counts in SHARED_KEYS if fields.has(key)), (None, False))
    return read_sparse(
        fields,
        Sparse(
            experts_key="num_experts",
            width_key=_first(fields, WIDTH_KEYS) or WIDTH_KEYS[0],
            qk_norm=_qk_norm(fields),
            shared_key=shared,
            shared_counts=counts,
        ),
    )


def _signs(fields: Fields) -> Iterator[str]:
    """Every key with a value that betrays another layout, as "words (key)"."""
    for source in (fields.values, fields.outer):
        for key, value in source.items():
            if value and not _is_idle_window(fields, key):
                yield from (
                    f"{words} ({key[:60]})" for pattern, words in SIGNS if pattern.search(key.lower())
                )
        kinds = source.get("layer_types")
        for kind in kinds if isinstance(kinds, list) else ():
            if kind != "full_attention":
                yield f"{str(kind)[:60]} layers (layer_types)"


def _is_idle_window(fields: Fields, key: str) -> bool:
    """A window that use_sliding_window turns off, or the flag without a window."""
    if key not in ("sliding_window", "use_sliding_window"):
        return False
    return fields.values.get("use_sliding_window") is False or not fields.has("sliding_window")


def _cautions(fields: Fields, architecture: str) -> Iterator[str]:
    yield (
        f"{architecture} is not a known architecture: read as a plain decoder in which every layer keeps "
        "keys and values of full attention"
    )
    if not fields.has("num_key_value_heads"):
        yield "the config has no num_key_value_heads: every attention head is taken to have its own KV head"
    if not fields.has("head_dim"):
        yield "the config has no head_dim: taken as hidden_size / num_attention_heads"
    if _first(fields, EXPERT_KEYS):
        yield "weights are taken as gated experts (gate, up, down) with a 16-bit router, as in Mixtral"
    else:
        yield "weights are taken as a gated MLP (gate, up, down) and two norms a layer, as in Llama"


def _qk_norm(fields: Fields) -> bool:
    return fields.flag("use_qk_norm", default=fields.flag("qk_norm"))


def _first(fields: Fields, keys: tuple[str, ...]) -> str | None:
    return next((key for key in keys if fields.has(key)), None)


def _renamed(fields: Fields, **spellings: tuple[str, ...]) -> Fields:
    """The fields with each name also under the first of its spellings that is present."""
    found = {name: _first(fields, keys) for name, keys in spellings.items()}
    values = {name: fields.values[key] for name, key in found.items() if key is not None}
    return replace(fields, values={**fields.values, **values})
