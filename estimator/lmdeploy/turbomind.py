"""TurboMind: a share of the memory left after the weights, cut into slabs of 64-token blocks.

Source: the C++ of LMDeploy 0.16 to 0.18 (engine.cc and turbomind.cc, memory/object.cc, slab.h, page.h,
GatedDeltaNetLayer.cc, scheduler.cc). Its log messages stand in the 0.18 wheel's binary word for word.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from estimator.engine_spec import EngineSpec
from estimator.held import InFlight
from estimator.kv_group import KvGroup, full_group
from estimator.lmdeploy.defaults import VERSION, limits, prior_context
from estimator.lmdeploy.served import check_served
from estimator.lmdeploy.storage import (
    TURBOMIND_FORMATS,
    KvFormat,
    StateParts,
    attention_of,
    kv_format,
    kv_heads_on_rank,
    state_parts,
)
from estimator.memory import KV_CACHE, LEFT_FREE, EngineLimits, KvBudget, Ledger, Line, settle
from estimator.model import LatentAttention, ModelSpec
from estimator.spec import GpuSpec, Interval, SpecError, UnsupportedModel
from estimator.units import GIB, MIB, ceil_div, format_bytes
from estimator.weights.count import Weights

NOT_EXECUTED: Final = (
    f"TurboMind's rules are read from the source of LMDeploy {VERSION} and not verified by execution"
)
PAGE_BYTES: Final = 32 * MIB
SLAB_BYTES_MAX: Final = GIB
SLAB_FILL_MIN: Final = 15_938_355 / 2**24
"""0.95 as a C++ float."""
PAD_BYTES: Final = Interval(low=0, likely=PAGE_BYTES // 2, high=PAGE_BYTES - 2 * MIB)
"""Lost where the region starts: it is rounded up to a page, and CUDA aligns to 2 MiB only."""
RESERVED_BLOCKS: Final = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Slab:
    """Objects of one size are handed out in slabs, and a slab keeps what its last object does not fill."""

    size_bytes: int
    objects: int

    def cost_bytes(self, objects: int = 1) -> int:
        """Of the arena, rounded up: what `objects` cost when every slab is full."""
        return ceil_div(objects * self.size_bytes, self.objects)


def slab_of(object_bytes: int) -> Slab:
    """Smallest power of two from 32 MiB that objects fill to 95%, or the last up to 1 GiB.

    An object above 1 GiB has a slab of its own. Source: memory/slab.h (SlabAllocator).
    """
    size_bytes = PAGE_BYTES
    while size_bytes < object_bytes:
        size_bytes *= 2
    while (
        size_bytes // object_bytes * object_bytes < SLAB_FILL_MIN * size_bytes
        and 2 * size_bytes <= SLAB_BYTES_MAX
    ):
        size_bytes *= 2
    return Slab(size_bytes=size_bytes, objects=size_bytes // object_bytes)


def block_bytes(model: ModelSpec, block_size: int, tp: int, stored: KvFormat) -> int:
    """Bytes of one block of all attention layers on one rank.

    2 x heads x tokens x (head size x bits / 8 + scales); latent attention stores keys alone, of latent
    and rotary size, on every rank.
    """
    token_bytes = 0
    for cache in attention_of(model):
        if isinstance(cache, LatentAttention):
            token_bytes += stored.key_bytes(cache.latent_size + cache.rope_size)
        else:
            row_bytes = stored.key_bytes(cache.head_size) + stored.value_bytes(cache.head_size_v)
            token_bytes += kv_heads_on_rank(cache.kv_heads, tp) * row_bytes
    return block_size * token_bytes


def frontier_blocks(state: StateParts, block: Slab) -> int:
    """Blocks whose place one running sequence's recurrent state takes in the arena, rounded up.

    Source: GatedDeltaNetLayer.cc: one object of a part for each layer's state and one for all convolutions,
    each part from a slab class of its own size.
    """
    cost_bytes = slab_of(state.recurrent_layer_bytes).cost_bytes(state.layers)
    cost_bytes += slab_of(state.conv_bytes).cost_bytes()
    return ceil_div(cost_bytes * block.objects, block.size_bytes)


def kv_budget(
    model: ModelSpec,
    gpu: GpuSpec,
    engine: EngineSpec,
    weights: Weights,
    *,
    context: Line | None = None,
    older_engine: bool = False,
) -> KvBudget:
    """The ledger of one GPU and the blocks it leaves.

    context: what is in use beside the weights, measured; None: the prior. older_engine: of a release before
    0.16, whose BlockManager had no slabs and took --num-gpu-blocks-override (its --cache-max-entry-count
    above 1). Raises SpecError when no block is left.
    """
    check_served(model, "turbomind")
    resolved = limits(model, gpu, engine)
    stored = kv_format(engine, TURBOMIND_FORMATS, "TurboMind")
    per_block_bytes = block_bytes(model, resolved.block_size, engine.tp, stored)
    state = state_parts(model, engine)
    if older_engine and state is not None:
        raise UnsupportedModel(f"not yet supported: {model.architecture} on LMDeploy before 0.16")
    override = _override(engine, older_engine)
    slab = slab_of(per_block_bytes)
    given_bytes = None if override is None else override * per_block_bytes
    ledger = _ledger(gpu, context or prior_context(engine), weights, resolved, given_bytes)
    count = (lambda size: size // per_block_bytes) if older_engine else _slab_blocks(slab)
    blocks = _blocks(ledger.kv_bytes, count, exact=override, pads=not older_engine)
    if blocks.likely < 1 or ledger.line(LEFT_FREE).size_bytes.likely < 0:
        raise SpecError(
            f"{model.name} does not fit on {gpu.name}: {format_bytes(weights.size_bytes)} of weights a GPU "
            "leave no room for the KV cache; raise --tp or take a larger GPU"
        )
    return KvBudget(
        limits=resolved,
        ledgers=(ledger,),
        blocks=blocks,
        reserved_blocks=RESERVED_BLOCKS,
        bytes_per_block=(per_block_bytes,),
        groups=_groups(model, resolved, per_block_bytes, state, slab),
        stored_as=stored.words if stored.key_bits < 16 else model.dtype,
        source="config" if override is None else "flags",
        in_flight=InFlight(steps=1, chunk_tokens=resolved.max_num_batched_tokens),
        cautions=(*model.cautions, *_cautions(model, slab, state, older_engine)),
    )


def _override(engine: EngineSpec, older_engine: bool) -> int | None:
    if engine.num_gpu_blocks_override is not None and not older_engine:
        raise SpecError(
            "TurboMind has no --num-gpu-blocks-override: it no longer takes a count of blocks; "
            "use --gpu-memory-utilization, its cache share"
        )
    return engine.num_gpu_blocks_override


def _slab_blocks(slab: Slab) -> Callable[[int], int]:
    """Whole pages, then whole slabs: pages are a buddy allocator's, so aligned slabs waste no more."""
    return lambda size: size // PAGE_BYTES * PAGE_BYTES // slab.size_bytes * slab.objects


def _blocks(cache: Interval, count: Callable[[int], int], *, exact: int | None, pads: bool) -> Interval:
    if exact is not None:
        return Interval.exact(exact)
    pad = PAD_BYTES if pads else Interval.exact(0)
    return Interval(
        low=count(max(0, int(cache.low - pad.high))),
        likely=count(max(0, int(cache.likely - pad.likely))),
        high=count(max(0, int(cache.high - pad.low))),
    )


def _ledger(
    gpu: GpuSpec, context: Line, weights: Weights, resolved: EngineLimits, given_bytes: int | None
) -> Ledger:
    """Free memory is read after the weights and before the activations, which live in what is not taken."""
    in_use = context.size_bytes
    free_bytes = gpu.memory_total_bytes - weights.size_bytes
    share = resolved.memory_share
    cache = Interval(
        low=int(max(0, free_bytes - in_use.high) * share),
        likely=int(max(0, free_bytes - in_use.likely) * share),
        high=int(max(0, free_bytes - in_use.low) * share),
    )
    source = f"{share:g} of what is free after the weights"
    if given_bytes is not None:
        cache, source = Interval.exact(given_bytes), "--num-gpu-blocks-override"
    return settle(
        gpu.memory_total_bytes,
        (
            context,
            Line(name="weights", size_bytes=Interval.exact(weights.size_bytes), source=weights.source),
            Line(name=KV_CACHE, size_bytes=cache, source=source),
        ),
        LEFT_FREE,
        "for activations and workspaces, which TurboMind makes afterwards",
    )


def _groups(
    model: ModelSpec, resolved: EngineLimits, per_block_bytes: int, state: StateParts | None, slab: Slab
) -> tuple[KvGroup, ...]:
    """Every layer keeps every token, windows included (scheduler.cc, EnsureBlocks)."""
    paged = full_group(resolved.block_size, layers=len(attention_of(model)), page_bytes=per_block_bytes)
    if state is None:
        return (paged,)
    held = frontier_blocks(state, slab)
    frontier = KvGroup(
        kind="state",
        block_size=resolved.block_size,
        layers=state.layers,
        page_bytes=per_block_bytes,
        state_blocks=held,
    )
    return (paged, frontier)


def _cautions(model: ModelSpec, slab: Slab, state: StateParts | None, older_engine: bool) -> tuple[str, ...]:
    found = [NOT_EXECUTED]
    if not older_engine:
        found.append(f"blocks come in slabs of {format_bytes(slab.size_bytes)}, {slab.objects} each")
    if state is not None:
        held = frontier_blocks(state, slab)
        found.append(
            f"the recurrent state of a running request takes the place of {held} blocks; checkpoints that "
            "prefix caching publishes come on top and are evicted first"
        )
    if any(getattr(cache, "window_tokens", None) for cache in attention_of(model)):
        found.append("TurboMind frees no block beyond a sliding window")
    return tuple(found)
