"""What a model is made of, layer by layer: what it caches and which matrices it holds. No engine, no GPU.

Counts are the whole model's, before any parallelism; an engine divides them (vllm/, lmdeploy/).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from estimator.spec import SpecError

Split = Literal["output", "input", "none"]
Mixer = Literal["mamba1", "mamba2", "gdn", "kda", "short_conv"]
CacheDtype = Literal["auto", "float32", "bfloat16", "float16", "uint8"]

DTYPE_BYTES: Final = {"float32": 4, "bfloat16": 2, "float16": 2, "uint8": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Keys and values of one attention layer. At most one of window and chunk is given; None: every token.

    cross: the keys are the encoder's (Whisper), not this sequence's.
    """

    kv_heads: int
    head_size: int
    head_size_v: int
    window_tokens: int | None = None
    chunk_tokens: int | None = None
    cross: bool = False

    def __post_init__(self) -> None:
        for field in ("kv_heads", "head_size", "head_size_v"):
            if getattr(self, field) < 1:
                raise SpecError(f"{field} must be at least 1, got {getattr(self, field)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentAttention:
    """Multi-head latent attention: one row of latent_size + rope_size elements a token, on every rank.

    sparse: the layer reads the top tokens that an indexer chose (DeepSeek-V3.2, GLM-5).
    """

    latent_size: int
    rope_size: int
    sparse: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexerKeys:
    """The keys by which a sparse layer picks its tokens: head_size elements a token, one head, every rank.

    dtype uint8: fp8 with one float32 scale for each 128 elements; bfloat16: as they are (MiniMax-M3).
    """

    head_size: int
    dtype: Literal["uint8", "bfloat16"] = "uint8"


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressedAttention:
    """A DeepSeek-V4 layer: a sliding window of latents, and beyond it one latent for `ratio` tokens.

    ratio 0 or 1: the window alone. index_head_size: set where the layer has an indexer (ratio 4).
    head_size counts the whole latent, its rotary part of rope_size included.
    """

    head_size: int
    rope_size: int
    window_tokens: int
    ratio: int
    index_head_size: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecurrentState:
    """State of fixed size that a layer keeps for each sequence instead of keys and values.

    heads x head_size: the output (value) heads. groups: key heads (gdn) or B/C groups (mamba2).
    state_size: rows of the state of a head (gdn: key head size; mamba: d_state). conv_kernel: taps of the
    short convolution before it. Shapes by mixer, on one of tp ranks: see vllm/pages.py.
    """

    mixer: Mixer
    heads: int
    head_size: int
    groups: int
    state_size: int
    conv_kernel: int
    state_dtype: CacheDtype = "auto"
    """dtype of the recurrent state; auto is the model's own. The convolution's is always the model's."""
    prefill_checkpoint: bool = False
    """The kernel stores one more state block while a prompt is read (Mamba2; KDA in Kimi-K3)."""


Cache = Attention | LatentAttention | IndexerKeys | CompressedAttention | RecurrentState


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Output rows of one of the projections merged into a matrix.

    kv_heads: these rows are KV heads, which every rank keeps at least one of (replicated beyond).
    """

    rows: int
    kv_heads: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """One parameter as the engine makes it: `parts` output rows x `columns`, times `experts` copies.

    split: what tensor parallelism divides; "output" the rows of each part (column-parallel), "input" the
    columns (row-parallel), "none" nothing: every rank keeps the whole. With expert parallelism a matrix of
    several experts is divided by expert instead. A vector (norm, bias) has columns 1.
    name: its module's path inside the layer (or the model), as the checkpoint spells it, by which a
    quantisation config leaves it out.
    """

    name: str
    parts: tuple[Part, ...]
    columns: int
    split: Split
    experts: int = 1
    quantised: bool = True
    """False: kept in its own dtype whatever the checkpoint's quantisation (norms, embeddings, routers)."""
    element_bytes: int = 2
    """Bytes an element where it is not quantised."""
    pad_rows: int = 1
    """Rows are padded to a multiple of this (64 for the vocabulary)."""
    rank_multiple: int = 1
    """Each rank's rows, its own share of every part, are padded to a multiple of this (Kimi-K3)."""
    heads: int | None = None
    """Divided only where tensor parallelism divides these heads, else whole on every rank (towers)."""

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)

    @property
    def elements(self) -> int:
        return self.rows * self.columns * self.experts


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One decoder layer: what it caches, what it holds. Layers that are alike share one object."""

    caches: tuple[Cache, ...]
    matrices: tuple[Matrix, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantisation:
    """How a checkpoint stores its linear layers. `scheme` is a name of weights/formats.py.

    kept: module-name patterns that stay in the model's dtype. kv_cache_dtype: what the checkpoint itself
    says of the KV cache (ModelOpt: "fp8"); None where it says nothing, and then "auto" is the model's dtype.
    """

    method: str
    scheme: str
    kept: tuple[str, ...] = ()
    schemes_by_module: tuple[tuple[str, str], ...] = ()
    """(module-name pattern, scheme) where layers differ; the first that matches wins."""
    group_size: int | None = None
    kv_cache_dtype: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A model as its config.json describes it; sizes are in elements."""

    name: str
    architecture: str
    model_type: str
    dtype: str
    quantisation: Quantisation | None
    hidden_size: int
    intermediate_size: int
    """Widest dense MLP or, without one, the experts' width times those a token visits."""
    vocab_size: int
    attention_heads: int
    """0 where the model has no attention (Mamba)."""
    context_tokens_max: int
    """The longest request it was made for."""
    tie_word_embeddings: bool
    layers: tuple[Layer, ...]
    draft_layers: tuple[Layer, ...] = ()
    """Multi-token-prediction layers of the checkpoint; loaded only for speculative decoding."""
    before: tuple[Matrix, ...] = ()
    """Embedding and what else only the first pipeline stage holds (a vision tower)."""
    after: tuple[Matrix, ...] = ()
    """Final norm and output head: the last stage's."""
    context_tokens_default: int | None = None
    """What vLLM serves without --max-model-len, where that is less (longrope)."""
    experts_per_token: int = 0
    experts: int = 0
    rope_elements: int = 0
    """Elements of the rotary table: cached positions x rotary size (0: unknown or none)."""
    cautions: tuple[str, ...] = ()
    """What was assumed in reading the config, each a clause without a full stop."""

    def __post_init__(self) -> None:
        for field in ("hidden_size", "vocab_size", "context_tokens_max"):
            if getattr(self, field) < 1:
                raise SpecError(f"{self.name}: {field} must be at least 1")
        if not any(layer.caches for layer in self.layers):
            raise SpecError(f"{self.name}: the model has no layer with a cache")

    @property
    def caches(self) -> Iterator[Cache]:
        return (cache for layer in self.layers for cache in layer.caches)

    @property
    def is_latent(self) -> bool:
        """Whether its attention is multi-head latent attention (vLLM's use_mla)."""
        return any(isinstance(cache, LatentAttention | CompressedAttention) for cache in self.caches)

    @property
    def has_state(self) -> bool:
        return any(isinstance(cache, RecurrentState) for cache in self.caches)

    @property
    def has_attention(self) -> bool:
        return any(not isinstance(cache, RecurrentState) for cache in self.caches)

    @property
    def matrices(self) -> Iterator[Matrix]:
        """Every matrix of the model, draft layers left out, in order of the forward pass."""
        yield from self.before
        for layer in self.layers:
            yield from layer.matrices
        yield from self.after

    @property
    def parameters(self) -> int:
        """Parameters of the model without its draft layers."""
        return sum(matrix.elements for matrix in self.matrices)

    @property
    def active_parameters(self) -> int:
        """Parameters one token meets: of the experts only those it is routed to."""
        return round(
            sum(
                matrix.elements * (self.experts_per_token / matrix.experts if matrix.experts > 1 else 1.0)
                for matrix in self.matrices
            )
        )
