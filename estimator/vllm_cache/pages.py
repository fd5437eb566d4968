"""What each layer keeps on one rank, as vLLM 0.32 describes it to its cache manager: a LayerSpec a cache.

Source: the get_kv_cache_spec methods under model_executor/layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from estimator.model import (
    Attention,
    Cache,
    CompressedAttention,
    IndexerKeys,
    LatentAttention,
    Layer,
    RecurrentState,
)
from estimator.pipeline import pipeline_stages
from estimator.spec import SpecError, heads_on_rank
from estimator.vllm_cache.backends import Kernel, kernel_of, stored_dtype
from estimator.vllm_cache.block_sizes import Blocks, block_sizes
from estimator.vllm_cache.deepseek_v4 import compressed_specs
from estimator.vllm_cache.formats import format_of, indexer_bytes, latent_bytes
from estimator.vllm_cache.layer_spec import LayerSpec, PlacedSpec
from estimator.vllm_cache.rank import Rank, draft_layers
from estimator.vllm_cache.states import state_bytes


def placed_specs(rank: Rank) -> list[PlacedSpec]:
    """Every cache of the model in vLLM's order, draft layers last on the last stage."""
    blocks = block_sizes(rank)
    model = rank.model
    stages = pipeline_stages(len(model.layers), rank.engine.pp)
    layers = [(stage, model.layers[index]) for stage, indices in enumerate(stages) for index in indices]
    layers += [(rank.engine.pp - 1, layer) for layer in draft_layers(model, rank.engine)]
    made: dict[tuple[tuple[Cache, ...], str], tuple[LayerSpec, ...]] = {}  # most layers are alike
    placed: list[PlacedSpec] = []
    for index, (stage, layer) in enumerate(layers):
        dtype = stored_dtype(model, rank.kv_dtype, index)
        alike = (layer.caches, dtype)
        if alike not in made:
            made[alike] = tuple(_layer_specs(replace(rank, kv_dtype=dtype), blocks, layer))
        placed += [PlacedSpec(stage=stage, spec=spec) for spec in made[alike]]
    return placed


def _layer_specs(rank: Rank, blocks: Blocks, layer: Layer) -> Iterator[LayerSpec]:
    for cache in layer.caches:
        if isinstance(cache, CompressedAttention):
            yield from compressed_specs(cache, blocks.block_size)
        elif isinstance(cache, RecurrentState):
            yield _state(rank, blocks, cache)
        elif isinstance(cache, Attention):
            kernel = kernel_of(rank.model, rank.gpu, layer, cache, rank.kv_dtype)
            yield _attention(rank, blocks, cache, kernel)
        else:
            yield _latent(rank, blocks, cache)


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


def _state(rank: Rank, blocks: Blocks, cache: RecurrentState) -> LayerSpec:
    """Source: kv_cache_interface.py MambaSpec.max_memory_usage_bytes."""
    guessed = rank.engine.speculative.num_speculative_tokens if rank.engine.speculative else 0
    return LayerSpec(
        kind="state",
        block_size=blocks.state_block_size,
        heads=1,
        slot_bytes=state_bytes(rank.model, rank.engine, cache),
        stored=f"{cache.mixer} {cache.heads}x{cache.head_size} {cache.state_dtype}",
        state_blocks=1 + guessed,
        rolls=rank.caches_prefixes,
        checkpoint=rank.caches_prefixes and cache.prefill_checkpoint,
        page_padded_bytes=blocks.state_page_bytes,
    )
