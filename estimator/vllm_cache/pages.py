"""What each layer keeps on one rank, as vLLM 0.32 describes it to its cache manager: one LayerSpec a cache.

Source: the get_kv_cache_spec methods under model_executor/layers and models/deepseek_v4,
platforms/interface.py update_block_size_for_backend.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, Literal

from estimator.engine_spec import EngineSpec
from estimator.model import (
    DTYPE_BYTES,
    Attention,
    Cache,
    CompressedAttention,
    IndexerKeys,
    LatentAttention,
    Layer,
    ModelSpec,
    RecurrentState,
)
from estimator.pipeline import pipeline_stages
from estimator.spec import GpuSpec, SpecError, heads_on_rank
from estimator.units import ceil_div
from estimator.vllm_cache.backends import (
    DEFAULT_BLOCK_SIZE,
    Kernel,
    common_block_size,
    is_boundary,
    kernel_of,
    kernels,
    smallest_common,
)
from estimator.vllm_cache.formats import format_of, is_turboquant, kv_dtype_of, latent_bytes
from estimator.vllm_cache.states import state_bytes

SpecKind = Literal["full", "latent", "window", "latent_window", "chunk", "state", "cross"]

LATENT_BLOCK_MULTIPLE: Final = 128
"""Hybrid models with latent attention: the decode kernels want whole 128 tokens a block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSpec:
    """One cache of one layer on one rank. Specs that are equal share a block table.

    heads: slots of a token; slot_bytes: of one head of one token (of the whole state). reach_tokens: window
    or chunk. The page is a whole multiple of page_multiple_bytes and at least page_padded_bytes.
    """

    kind: SpecKind
    block_size: int
    heads: int
    slot_bytes: int
    stored: str
    """What tells apart specs of the same size: head sizes and format."""
    tokens_per_slot: int = 1
    reach_tokens: int = 0
    state_blocks: int = 0
    page_padded_bytes: int = 0
    page_multiple_bytes: int = 1

    @property
    def content_bytes(self) -> int:
        """Bytes of a block, without padding."""
        if self.kind == "state":
            return self.slot_bytes
        return self.heads * (self.block_size // self.tokens_per_slot) * self.slot_bytes

    @property
    def page_bytes(self) -> int:
        whole_bytes = ceil_div(self.content_bytes, self.page_multiple_bytes) * self.page_multiple_bytes
        return max(self.page_padded_bytes, whole_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedSpec:
    """A LayerSpec and the pipeline stage that holds it."""

    stage: int
    spec: LayerSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """The block sizes vLLM settles on before it asks the layers. Bytes are 0 where nothing is padded."""

    block_size: int
    state_block_size: int
    state_page_bytes: int
    shared_page_bytes: int
    """What layers left unquantised beside TurboQuant's share their page with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """What a page depends on besides the layer."""

    model: ModelSpec
    gpu: GpuSpec
    engine: EngineSpec
    kv_dtype: str
    max_model_len: int

    @property
    def caches_prefixes(self) -> bool:
        """vLLM never caches prefixes of models without attention or with an encoder.

        Source: config/model.py is_prefix_caching_supported.
        """
        return self.engine.enable_prefix_caching and self.model.has_attention and not self._has_encoder

    @property
    def _has_encoder(self) -> bool:
        return any(isinstance(cache, Attention) and cache.cross for cache in self.model.caches)


def rank_of(model: ModelSpec, gpu: GpuSpec, engine: EngineSpec, max_model_len: int) -> Rank:
    """Raises SpecError for a --kv-cache-dtype this model cannot use."""
    return Rank(
        model=model,
        gpu=gpu,
        engine=engine,
        kv_dtype=kv_dtype_of(model, gpu, engine),
        max_model_len=max_model_len,
    )


def placed_specs(rank: Rank) -> list[PlacedSpec]:
    """Every cache of the model in vLLM's order, draft layers last on the last stage."""
    blocks = block_sizes(rank)
    model = rank.model
    stages = pipeline_stages(len(model.layers), rank.engine.pp)
    placed = [
        PlacedSpec(stage=stage, spec=spec)
        for stage, indices in enumerate(stages)
        for index in indices
        for spec in _layer_specs(rank, blocks, model.layers[index], index)
    ]
    placed += [
        PlacedSpec(stage=rank.engine.pp - 1, spec=spec)
        for layer in draft_layers(model, rank.engine)
        for spec in _layer_specs(rank, blocks, layer, None)
    ]
    return placed


def draft_layers(model: ModelSpec, engine: EngineSpec) -> tuple[Layer, ...]:
    """The layers a speculative method adds: the checkpoint's own, or attention layers like the model's last.

    Raises SpecError for multi-token prediction without layers for it.
    """
    asked = engine.speculative
    if asked is None or asked.method == "ngram":
        return ()
    if asked.method == "mtp":
        if not model.draft_layers:
            raise SpecError(f"{model.name} has no multi-token-prediction layers; use another method than mtp")
        return model.draft_layers
    alike = next((layer for layer in reversed(model.layers) if _full_attention(layer)), None)
    if alike is None:
        raise SpecError(f"{model.name} has no attention layer that a draft model could be like")
    return (alike,) * asked.draft_layers


def _full_attention(layer: Layer) -> bool:
    return any(isinstance(cache, Attention | LatentAttention) for cache in layer.caches)


def block_sizes(rank: Rank) -> Blocks:
    """Source: platforms/interface.py update_block_size_for_backend and the two alignments after it."""
    found = kernels(rank.model, rank.gpu, rank.kv_dtype)
    if not found:
        return Blocks(
            block_size=rank.engine.block_size or DEFAULT_BLOCK_SIZE,
            state_block_size=rank.max_model_len,
            state_page_bytes=0,
            shared_page_bytes=0,
        )
    block_size = rank.engine.block_size or common_block_size(found)
    refusing = [kernel for kernel in found if not kernel.accepts(block_size)]
    if refusing:
        raise SpecError(
            f"--block-size {block_size} is not a multiple of the {refusing[0].smallest} tokens that "
            f"{refusing[0].name} needs; use {common_block_size(found)}"
        )
    page_bytes = 0
    if rank.model.has_state:
        block_size, page_bytes = _align_hybrid(rank, found, block_size)
    shared_bytes = 0
    if is_turboquant(rank.kv_dtype) and not rank.model.has_state:
        block_size, shared_bytes = _align_mixed(rank, found, block_size)
    return Blocks(
        block_size=block_size,
        state_block_size=block_size if rank.caches_prefixes else rank.max_model_len,
        state_page_bytes=page_bytes,
        shared_page_bytes=shared_bytes,
    )


def _align_hybrid(rank: Rank, found: tuple[Kernel, ...], block_size: int) -> tuple[int, int]:
    """Block size whose attention page holds one state, and that page in bytes.

    Source: platforms/interface.py _align_hybrid_block_size.
    """
    states = [cache for cache in rank.model.caches if isinstance(cache, RecurrentState)]
    largest_bytes = max(state_bytes(rank.model, rank.engine, state) for state in states)
    token_bytes = _token_bytes(rank)
    step = max(found[0].smallest, block_size, LATENT_BLOCK_MULTIPLE if rank.model.is_latent else 0)
    common = smallest_common(found)
    needed = step * ceil_div(largest_bytes, step * token_bytes)
    aligned = max(block_size, common * ceil_div(needed, common))
    return aligned, aligned * token_bytes


def _token_bytes(rank: Rank) -> int:
    """Bytes one token takes in one attention layer: the model's first."""
    cache = next(c for c in rank.model.caches if isinstance(c, Attention | LatentAttention))
    if isinstance(cache, LatentAttention):
        return latent_bytes(rank.model, rank.kv_dtype, cache.latent_size + cache.rope_size)
    heads = heads_on_rank(cache.kv_heads, rank.engine.tp)
    return heads * format_of(rank.model, rank.kv_dtype).head_bytes(cache.head_size, cache.head_size)


def _align_mixed(rank: Rank, found: tuple[Kernel, ...], block_size: int) -> tuple[int, int]:
    """Block size where unquantised layers share the pool with TurboQuant's, and the page they share.

    Source: platforms/interface.py _align_heterogeneous_kv_block_size. It asks the first layer's backend,
    one of the unquantised, so it takes a quantised element for a whole byte.
    """
    cache = next(c for c in rank.model.caches if isinstance(c, Attention))
    elements = 2 * heads_on_rank(cache.kv_heads, rank.engine.tp) * cache.head_size
    needed_bytes = elements * DTYPE_BYTES[rank.model.dtype] * found[0].smallest
    step = max(found[0].smallest, block_size)
    aligned = max(block_size, step * ceil_div(needed_bytes, step * elements))
    return aligned, aligned * elements


def _layer_specs(rank: Rank, blocks: Blocks, layer: Layer, index: int | None) -> Iterator[LayerSpec]:
    """The specs of one layer; index is None for a draft layer."""
    last = len(rank.model.layers) - 1
    kept = index is not None and is_turboquant(rank.kv_dtype) and is_boundary(rank.model, index, last)
    local = replace(rank, kv_dtype="auto") if kept else rank
    for cache in layer.caches:
        if isinstance(cache, CompressedAttention):
            yield from _compressed(cache, blocks)
        elif isinstance(cache, RecurrentState):
            yield _state(local, blocks, cache)
        elif isinstance(cache, Attention):
            kernel = kernel_of(rank.model, rank.gpu, layer, cache, local.kv_dtype)
            yield _attention(local, blocks, cache, kernel)
        else:
            yield _latent(local, blocks, cache)


def _attention(rank: Rank, blocks: Blocks, cache: Attention, kernel: Kernel) -> LayerSpec:
    slot_bytes = format_of(rank.model, rank.kv_dtype).head_bytes(cache.head_size, cache.head_size_v)
    spec = LayerSpec(
        kind="cross" if cache.cross else "full",
        block_size=blocks.block_size,
        heads=heads_on_rank(cache.kv_heads, rank.engine.tp),
        slot_bytes=slot_bytes,
        stored=f"{rank.kv_dtype} {cache.head_size}+{cache.head_size_v}",
    )
    if cache.chunk_tokens is not None:
        return replace(spec, kind="chunk", reach_tokens=cache.chunk_tokens)
    if cache.window_tokens is None:
        return spec
    if rank.engine.dcp > 1:
        raise SpecError(
            f"--decode-context-parallel-size {rank.engine.dcp} does not go with the sliding window of "
            f"{rank.model.name}; leave it out"
        )
    budget_bytes = blocks.shared_page_bytes or spec.page_bytes
    return replace(
        spec,
        kind="window",
        reach_tokens=cache.window_tokens,
        block_size=kernel.largest_within(budget_bytes // (spec.heads * slot_bytes)),
        page_padded_bytes=blocks.shared_page_bytes,
    )


def _latent(rank: Rank, blocks: Blocks, cache: LatentAttention | IndexerKeys) -> LayerSpec:
    """Latents and indexer keys are one head, whole on every rank."""
    if isinstance(cache, IndexerKeys):
        slot_bytes = 2 * cache.head_size if cache.dtype == "bfloat16" else indexer_bytes(cache.head_size)
        stored = f"indexer {cache.dtype}"
    else:
        slot_bytes = latent_bytes(rank.model, rank.kv_dtype, cache.latent_size + cache.rope_size)
        stored = rank.kv_dtype
    return LayerSpec(
        kind="latent", block_size=blocks.block_size, heads=1, slot_bytes=slot_bytes, stored=stored
    )


def indexer_bytes(head_size: int) -> int:
    """fp8 and a float32 scale for every 128 elements. Source: models/deepseek_v2.py Indexer."""
    return head_size + head_size // 128 * 4


def _state(rank: Rank, blocks: Blocks, cache: RecurrentState) -> LayerSpec:
    """Source: kv_cache_interface.py MambaSpec.max_memory_usage_bytes."""
    guessed = rank.engine.speculative.num_speculative_tokens if rank.engine.speculative else 0
    held = 2 + guessed + cache.prefill_checkpoint if rank.caches_prefixes else 1 + guessed
    return LayerSpec(
        kind="state",
        block_size=blocks.state_block_size,
        heads=1,
        slot_bytes=state_bytes(rank.model, rank.engine, cache),
        stored=f"{cache.mixer} {cache.heads}x{cache.head_size} {cache.state_dtype}",
        state_blocks=held,
        page_padded_bytes=blocks.state_page_bytes,
    )


PACK_BYTES: Final = 576
"""DeepSeek-V4's pages are whole multiples of this."""
WINDOW_BLOCK: Final = 64
COMPRESSOR_BLOCKS: Final = {4: 4, 128: 8}
"""Tokens of a block of compressor state, by ratio. Source: models/deepseek_v4/compressor.py."""


def _compressed(cache: CompressedAttention, blocks: Blocks) -> Iterator[LayerSpec]:
    """Source: models/deepseek_v4/attention.py, compressor.py; v1/attention/backends/mla/sparse_swa.py.

    A latent: its unrotated part in fp8, its rotary part in 16 bits, a scale for each 64 elements and one
    byte of padding.
    """
    plain = cache.head_size - cache.rope_size
    latent = plain + 2 * cache.rope_size + plain // 64 + 1
    window = _packed("latent_window", WINDOW_BLOCK, latent, reach_tokens=cache.window_tokens)
    if cache.ratio <= 1:
        yield window
        return
    if cache.ratio not in COMPRESSOR_BLOCKS:
        raise SpecError(f"compress_ratios: vLLM knows 0, 1, 4 and 128, not {cache.ratio}")
    if cache.index_head_size is not None:
        yield _packed("latent", blocks.block_size, indexer_bytes(cache.index_head_size), cache.ratio)
        yield _compressor(cache.index_head_size, cache.ratio)
    yield window
    yield _packed("latent", blocks.block_size, latent, cache.ratio)
    yield _compressor(cache.head_size, cache.ratio)


def _compressor(head_size: int, ratio: int) -> LayerSpec:
    """The tokens not yet compressed, as float32 keys and scores; at ratio 4 the windows overlap by half."""
    overlap = 2 if ratio == 4 else 1
    return _packed(
        "latent_window", COMPRESSOR_BLOCKS[ratio], 4 * 2 * overlap * head_size, reach_tokens=overlap * ratio
    )


def _packed(
    kind: SpecKind, block_size: int, slot_bytes: int, tokens_per_slot: int = 1, reach_tokens: int = 0
) -> LayerSpec:
    return LayerSpec(
        kind=kind,
        block_size=block_size,
        heads=1,
        slot_bytes=slot_bytes,
        stored="packed",
        tokens_per_slot=tokens_per_slot,
        reach_tokens=reach_tokens,
        page_multiple_bytes=PACK_BYTES,
    )
