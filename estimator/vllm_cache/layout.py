"""The layout of vLLM 0.32's KV cache: groups, bytes of a block, and the numbers its start-up line gives.

Source: v1/core/kv_cache_utils.py get_kv_cache_configs, _get_kv_cache_bytes_per_block,
get_max_concurrency_for_kv_cache_config; max_memory_usage_bytes of the specs in v1/kv_cache_interface.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from estimator.engine_spec import EngineSpec
from estimator.kv_group import GroupKind, KvGroup
from estimator.memory import EngineLimits, Headline
from estimator.model import ModelSpec
from estimator.spec import GpuSpec
from estimator.units import ceil_div
from estimator.vllm_cache.defaults import concurrent_batches
from estimator.vllm_cache.formats import stored_as
from estimator.vllm_cache.groups import Group, groups_of
from estimator.vllm_cache.layer_spec import LayerSpec, SpecKind
from estimator.vllm_cache.rank import draft_layers, rank_of

GROUP_KINDS: Final[Mapping[SpecKind, GroupKind]] = {
    "full": "full",
    "latent": "full",
    "window": "window",
    "latent_window": "window",
    "chunk": "chunk",
    "state": "state",
    "cross": "cross",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class KvLayout:
    """How one pool of block ids serves all layers. Bytes are those of one rank."""

    groups: tuple[KvGroup, ...]
    bytes_per_block: tuple[int, ...]
    """One for each pipeline stage."""
    block_size: int
    """Tokens, as the engine reports it: the smallest of its groups'."""
    stored_as: str

    @property
    def blocks_per_request(self) -> int:
        """Blocks the start-up line counts for a request of max_model_len, over all groups."""
        return sum(group.headline_blocks for group in self.groups)

    @property
    def min_bytes_one_request(self) -> int:
        """Bytes a rank must have for one such request, the null block left out: the largest stage's."""
        return self.blocks_per_request * max(self.bytes_per_block)


def kv_layout(model: ModelSpec, gpu: GpuSpec, engine: EngineSpec, limits: EngineLimits) -> KvLayout:
    """Raises SpecError for flags vLLM refuses, UnsupportedModel for layers it cannot put into one pool."""
    rank = rank_of(model, gpu, engine, limits.max_model_len)
    groups = groups_of(rank)
    return KvLayout(
        groups=tuple(_kv_group(group, model, engine, limits) for group in groups),
        bytes_per_block=tuple(_stage_bytes(groups, stage) for stage in range(engine.pp)),
        block_size=min(group[0].spec.block_size for group in groups),
        stored_as=stored_as(model, rank.kv_dtype),
    )


def num_blocks(layout: KvLayout, available_bytes: Sequence[int]) -> int:
    """Blocks of the pool, the null block included. available_bytes: one for each pipeline stage."""
    stages = zip(available_bytes, layout.bytes_per_block, strict=True)
    return min(available // block for available, block in stages)


def headline(layout: KvLayout, blocks: int, max_model_len: int) -> Headline:
    """vLLM's own log line for a pool of `blocks`."""
    concurrency = blocks / layout.blocks_per_request
    return Headline(cache_tokens=int(concurrency * max_model_len), max_concurrency=concurrency)


def _stage_bytes(groups: Sequence[Group], stage: int) -> int:
    """Groups overlay one another, so a block costs what the largest of them takes on this stage."""
    return max(sum(placed.spec.page_bytes for placed in group if placed.stage == stage) for group in groups)


def _kv_group(group: Group, model: ModelSpec, engine: EngineSpec, limits: EngineLimits) -> KvGroup:
    first = group[0].spec
    kind = GROUP_KINDS[first.kind]
    pages = {placed.spec.page_bytes for placed in group}
    retained = _retained_tokens(model, engine) if kind == "window" else 0
    return KvGroup(
        kind=kind,
        block_size=first.block_size * (1 if kind == "state" else engine.dcp),
        layers=len(group),
        page_bytes=pages.pop() if len(pages) == 1 else sum(placed.spec.page_bytes for placed in group),
        reach_tokens=limits.max_num_batched_tokens if kind == "cross" else first.reach_tokens + retained,
        state_blocks=first.state_blocks,
        rolls=first.rolls,
        checkpoint=first.checkpoint,
        ahead_tokens=_ahead_tokens(engine) if kind in ("full", "window", "chunk") else 0,
        headline_blocks=_headline_blocks(first, retained, engine, limits),
    )


def _headline_blocks(spec: LayerSpec, retained: int, engine: EngineSpec, limits: EngineLimits) -> int:
    """Source: max_memory_usage_bytes / page_size_bytes of each spec."""
    length, in_flight = limits.max_model_len, limits.in_flight_tokens
    match GROUP_KINDS[spec.kind]:
        case "full":
            return ceil_div(ceil_div(length, engine.dcp), spec.block_size)
        case "window":
            kept = min(spec.reach_tokens - 1 + retained + in_flight, length)
            return ceil_div(kept, spec.block_size) + 1
        case "chunk":
            return ceil_div(min(spec.reach_tokens + in_flight, length), spec.block_size)
        case "cross":
            return ceil_div(limits.max_num_batched_tokens, spec.block_size)
        case "state":
            return spec.state_blocks + spec.rolls + spec.checkpoint


def _ahead_tokens(engine: EngineSpec) -> int:
    """Slots of guessed tokens: of each step in flight until it is known which were right, and the drafter's.

    Source: v1/core/kv_cache_manager.py allocate_slots (num_lookahead_tokens), config/vllm.py.
    """
    if engine.speculative is None:
        return 0
    guessed = engine.speculative.num_speculative_tokens
    return guessed * concurrent_batches(engine) + engine.lookahead_tokens


def _retained_tokens(model: ModelSpec, engine: EngineSpec) -> int:
    """Tokens a window keeps longer because several draft layers may read them again.

    Source: config/vllm.py num_prefill_lookahead_tokens, config/speculative.py use_multi_module_mtp.
    """
    if engine.speculative is None or engine.speculative.method != "mtp":
        return 0
    guessed = engine.speculative.num_speculative_tokens
    modules = sum(bool(layer.caches) for layer in draft_layers(model, engine))
    return guessed - 1 if min(modules, guessed) > 1 else 0
