"""Multi-head latent attention and its indexer: what one layer caches and which matrices it holds.

Source: vLLM 0.32 model_executor/models/deepseek_v2.py (DeepseekV2MLAAttention, Indexer) and
models/deepseek_v32/attention.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from estimator.families.parts import linear, norm
from estimator.fields import Fields
from estimator.model import Cache, IndexerKeys, LatentAttention, Matrix
from estimator.spec import SpecError


@dataclass(frozen=True, slots=True, kw_only=True)
class Indexer:
    """Picks the `index_topk` tokens that a sparse layer reads; its queries come from the query's latent."""

    heads: int
    head_size: int

    def matrices(self, hidden: int, query_latent_size: int, *, name: str) -> tuple[Matrix, ...]:
        """On every rank whole; the keys' norm is a float32 LayerNorm with a bias."""
        return (
            *linear(f"{name}.wq_b", self.heads * self.head_size, query_latent_size, "none"),
            *linear(f"{name}.wk_weights_proj", (self.head_size, self.heads), hidden, "none", quantised=False),
            norm(f"{name}.k_norm", self.head_size, element_bytes=4),
            norm(f"{name}.k_norm.bias", self.head_size, element_bytes=4),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Latent:
    """The sizes of a latent attention layer; sizes of heads are elements of one head."""

    heads: int
    latent_size: int
    rope_size: int
    plain_size: int
    """Elements of a query or key head that are not rotated."""
    value_size: int
    query_latent_size: int
    """0: queries are projected straight from the hidden state (DeepSeek-V2-Lite)."""
    indexer: Indexer | None = None
    """The model's indexer; not every sparse layer need have one of its own."""

    def caches(self, *, has_indexer: bool) -> tuple[Cache, ...]:
        latents = LatentAttention(
            latent_size=self.latent_size, rope_size=self.rope_size, sparse=self.indexer is not None
        )
        if self.indexer is None or not has_indexer:
            return (latents,)
        return IndexerKeys(head_size=self.indexer.head_size), latents

    def matrices(self, hidden: int, *, has_indexer: bool, name: str = "self_attn") -> tuple[Matrix, ...]:
        """The down-projections are whole on every rank, the up-projections divided by heads."""
        indexer = (
            self.indexer.matrices(hidden, self.query_latent_size, name=f"{name}.indexer")
            if self.indexer is not None and has_indexer
            else ()
        )
        return (
            *self._down_and_query(hidden, name),
            norm(f"{name}.kv_a_layernorm", self.latent_size),
            *linear(
                f"{name}.kv_b_proj",
                self.heads * (self.plain_size + self.value_size),
                self.latent_size,
                "output",
            ),
            *linear(f"{name}.o_proj", hidden, self.heads * self.value_size, "input"),
            *indexer,
        )

    def _down_and_query(self, hidden: int, name: str) -> tuple[Matrix, ...]:
        keys, rank = self.latent_size + self.rope_size, self.query_latent_size
        queries = self.heads * (self.plain_size + self.rope_size)
        if not rank:
            return (
                *linear(f"{name}.kv_a_proj_with_mqa", keys, hidden, "none"),
                *linear(f"{name}.q_proj", queries, hidden, "output"),
            )
        return (
            *linear(f"{name}.fused_qkv_a_proj", (rank, keys), hidden, "none"),
            norm(f"{name}.q_a_layernorm", rank),
            *linear(f"{name}.q_b_proj", queries, rank, "output"),
        )


def read_latent(fields: Fields, *, is_sparse: bool = False) -> Latent:
    """Sparse where the class is or the config has an index_topk. Raises SpecError naming a missing key."""
    rank = stated_size(fields, "q_lora_rank")
    indexer = None
    if is_sparse or fields.has("index_topk"):
        if not rank:
            raise SpecError("q_lora_rank must be given for a model with an indexer (index_topk)")
        indexer = Indexer(heads=fields.size("index_n_heads"), head_size=fields.size("index_head_dim"))
    return Latent(
        heads=fields.size("num_attention_heads"),
        latent_size=fields.size("kv_lora_rank"),
        rope_size=fields.size("qk_rope_head_dim"),
        plain_size=fields.size("qk_nope_head_dim"),
        value_size=fields.size("v_head_dim"),
        query_latent_size=rank,
        indexer=indexer,
    )


def stated_size(fields: Fields, key: str) -> int:
    """0 where the config says null. Raises SpecError where it says nothing, because the default varies."""
    if key in fields.values and not fields.has(key):
        return 0
    return fields.size(key, least=0)


def untied(fields: Fields) -> Fields:
    """These classes make an output head whatever tie_word_embeddings says."""
    return replace(fields, values={**fields.values, "tie_word_embeddings": False})
