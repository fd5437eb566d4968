"""Layers into groups that share a block table, in the order vLLM 0.32 tries it.

Source: v1/core/kv_cache_utils.py get_kv_cache_groups and the functions it calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Final

from estimator.model import CompressedAttention
from estimator.spec import UnsupportedModel
from estimator.units import ceil_div
from estimator.vllm_cache.layer_spec import LayerSpec, PlacedSpec
from estimator.vllm_cache.pages import placed_specs
from estimator.vllm_cache.rank import Rank

Group = tuple[PlacedSpec, ...]

FULL_KINDS: Final = frozenset({"full", "latent"})
PROMOTED: Final = {"window": "full", "latent_window": "latent", "chunk": "full"}
SIMILAR_SIZES: Final = 1.5
"""Buckets within this factor of one another are padded to the larger."""


def groups_of(rank: Rank) -> tuple[Group, ...]:
    """The groups of the whole model, each layer with its pipeline stage. Raises SpecError."""
    packed = any(isinstance(cache, CompressedAttention) for cache in rank.model.caches)
    hybrid_off = rank.engine.disable_hybrid_kv_cache_manager
    return group_layers(placed_specs(rank), block_outer=packed, hybrid_off=hybrid_off)


def group_layers(specs: Sequence[PlacedSpec], *, block_outer: bool, hybrid_off: bool) -> tuple[Group, ...]:
    """Groups in vLLM's order. block_outer: every block holds the pages of all layers side by side.

    hybrid_off: --disable-hybrid-kv-cache-manager. Raises UnsupportedModel for pages that cannot be unified.
    """
    if hybrid_off:
        specs = _promoted(specs)
    if _same_slots(specs):
        return (tuple(specs),)
    if block_outer:
        return _packed(specs)
    return _same_page(_unified(specs))


def _slots(spec: LayerSpec) -> tuple[object, ...]:
    """What layers of one block table must have in common: they need the same number of token slots.

    Source: kv_cache_interface.py is_uniform_with_collection of each spec.
    """
    family = "full" if spec.kind in FULL_KINDS else spec.kind
    size = (spec.page_bytes, spec.state_blocks, spec.checkpoint) if spec.kind == "state" else ()
    return (spec.block_size, family, spec.reach_tokens, size)


def _same_slots(specs: Sequence[PlacedSpec]) -> bool:
    return len({_slots(placed.spec) for placed in specs}) == 1


def _promoted(specs: Sequence[PlacedSpec]) -> Sequence[PlacedSpec]:
    """Windows and chunks as full attention, where the model has full attention as well.

    Source: kv_cache_utils.py _promote_local_kv_cache_specs.
    """
    full_sizes = {placed.spec.block_size for placed in specs if placed.spec.kind in FULL_KINDS}
    if _same_slots(specs) or not full_sizes:
        return specs
    size = full_sizes.pop() if len(full_sizes) == 1 else None
    promoted = [
        _with_spec(
            placed,
            kind=PROMOTED[placed.spec.kind],
            reach_tokens=0,
            block_size=size or placed.spec.block_size,
        )
        if placed.spec.kind in PROMOTED
        else placed
        for placed in specs
    ]
    if not _same_slots(promoted):
        raise UnsupportedModel(
            "--disable-hybrid-kv-cache-manager: vLLM cannot bring these layers to one kind; leave it out"
        )
    return promoted


def _with_spec(placed: PlacedSpec, **changes: object) -> PlacedSpec:
    return replace(placed, spec=replace(placed.spec, **changes))  # type: ignore[arg-type]


def _unified(specs: Sequence[PlacedSpec]) -> list[PlacedSpec]:
    """Every page as large as the largest: by more tokens a block where that divides, by padding otherwise.

    Source: kv_cache_utils.py unify_kv_cache_spec_page_size.
    """
    largest_bytes = max(placed.spec.page_bytes for placed in specs)
    return [_at_page(placed, largest_bytes) for placed in specs]


def _at_page(placed: PlacedSpec, page_bytes: int) -> PlacedSpec:
    spec = placed.spec
    if spec.page_bytes == page_bytes:
        return placed
    if spec.kind != "state" and page_bytes % spec.page_bytes == 0:
        return _with_spec(placed, block_size=spec.block_size * (page_bytes // spec.page_bytes))
    if spec.kind == "latent":
        raise UnsupportedModel(
            f"the latent page of {spec.page_bytes} bytes does not divide the largest of {page_bytes}, and "
            "vLLM cannot pad it; its layers cannot share one pool"
        )
    return _with_spec(placed, page_padded_bytes=page_bytes)


def _buckets(specs: Iterable[PlacedSpec], key: Callable[[LayerSpec], object]) -> list[list[PlacedSpec]]:
    found: dict[object, list[PlacedSpec]] = {}
    for placed in specs:
        found.setdefault(key(placed.spec), []).append(placed)
    return list(found.values())


def _same_page(specs: Sequence[PlacedSpec]) -> tuple[Group, ...]:
    """Groups of as many layers as the smallest bucket has; what is missing in the last is wasted.

    Layers are dealt out in turn, so that every pipeline stage has some of each group.
    Source: kv_cache_utils.py _get_kv_cache_groups_uniform_page_size.
    """
    buckets = _buckets(specs, lambda spec: spec)
    sizes = [len(bucket) for bucket in buckets]
    size = max(sizes) if max(sizes) < min(sizes) * SIMILAR_SIZES else min(sizes)
    return tuple(
        tuple(bucket[start :: ceil_div(len(bucket), size)])
        for bucket in buckets
        for start in range(ceil_div(len(bucket), size))
    )


def _packed(specs: Sequence[PlacedSpec]) -> tuple[Group, ...]:
    """DeepSeek-V4's groups: pages of different sizes lie side by side in one block.

    A bucket with as many layers of each page size is a repeating pattern; all such buckets are cut into
    groups of about the same number of repeats, chosen for the least padding. Source: kv_cache_utils.py
    _get_packed_kv_cache_groups.
    """
    buckets = [_buckets(bucket, lambda spec: spec.page_bytes) for bucket in _buckets(specs, _slots)]
    patterns = [bucket for bucket in buckets if len({len(pages) for pages in bucket}) == 1]
    floor = max((len(bucket[0]) for bucket in patterns if len(bucket) > 1), default=0)
    repeats = _repeats([len(bucket[0]) for bucket in patterns], floor) if floor else 0
    groups: list[Group] = []
    anchor_bytes = max(_widest_bytes(bucket, _anchor_count(bucket, patterns, repeats)) for bucket in buckets)
    for bucket in buckets:
        count = _split(bucket, patterns, repeats)
        if _is_state(bucket, repeats):
            fitting = max(anchor_bytes // bucket[0][0].spec.page_bytes, 1)
            count = max(count, ceil_div(sum(len(pages) for pages in bucket), fitting))
        if count == 1:
            groups.append(tuple(placed for pages in bucket for placed in pages))
            continue
        pattern = list(zip(*bucket, strict=False))
        groups += [
            tuple(placed for repeat in pattern[start::count] for placed in repeat) for start in range(count)
        ]
    return tuple(groups)


Bucket = list[list[PlacedSpec]]


def _split(bucket: Bucket, patterns: Sequence[Bucket], repeats: int) -> int:
    """Groups a bucket is cut into."""
    return ceil_div(len(bucket[0]), repeats) if repeats and bucket in patterns else 1


def _anchor_count(bucket: Bucket, patterns: Sequence[Bucket], repeats: int) -> int:
    if _is_state(bucket, repeats):
        return sum(len(pages) for pages in bucket)
    return _split(bucket, patterns, repeats)


def _is_state(bucket: Bucket, repeats: int) -> bool:
    """Buckets that may go down to one page a group without widening the block."""
    kind = bucket[0][0].spec.kind
    return kind == "state" or (not repeats and kind in ("window", "latent_window"))


def _widest_bytes(bucket: Bucket, count: int) -> int:
    return sum(ceil_div(len(pages), count) * pages[0].spec.page_bytes for pages in bucket)


def _repeats(counts: Sequence[int], floor: int) -> int:
    """The size, at least `floor`, to whose multiples `counts` round up with the least padding.

    Source: kv_cache_utils.py _approximate_gcd: of equals the largest.
    """
    return min(
        range(floor, max(counts) + 1),
        key=lambda size: (sum(-count % size for count in counts), -size),
    )
