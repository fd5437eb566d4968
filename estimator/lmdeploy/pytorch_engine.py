"""LMDeploy's PyTorch engine: states and run-time buffers first, then a share of the rest as blocks.

Source: LMDeploy 0.18 pytorch/engine/executor/base.py (update_configs), pytorch/engine/cache_engine/
(schema.py, layout.py, state.py), pytorch/configurations/, pytorch/paging/block_manager/.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from estimator.engine_spec import EngineSpec
from estimator.held import InFlight
from estimator.kv_group import KvGroup, full_group
from estimator.lmdeploy.defaults import VERSION, limits, prior_context
from estimator.lmdeploy.paging import Page, aligned, block_size_of, page_of
from estimator.lmdeploy.served import check_served
from estimator.lmdeploy.storage import PYTORCH_FORMATS, attention_of, kv_format, state_parts
from estimator.memory import KV_CACHE, LEFT_FREE, EngineLimits, KvBudget, Ledger, Line, settle
from estimator.model import Attention, LatentAttention, ModelSpec
from estimator.spec import GpuSpec, Interval, SpecError
from estimator.units import MIB, format_bytes
from estimator.weights.count import Weights

NOT_EXECUTED: Final = (
    f"the PyTorch engine's rules agree with LMDeploy {VERSION}'s own sizing code run without a GPU; on a GPU "
    "they are not verified by execution"
)
RESERVED_BLOCKS: Final = 1
"""For dummy inputs and padding (config_builder.py build_cache_config)."""
BLOCKS_WANTED: Final = 16
BLOCKS_MIN: Final = 3
"""With fewer the engine stops; with 3 to 15 it halves max_prefill_token_num and tries again."""
LOGIT_BYTES: Final = 2
SPARE_STATES: Final = 2
"""A state slot for the system and one for rolling prefill, beside one a sequence."""
DECODED_TOKENS: Final = 1
"""A decoding step frees behind the window before it allocates: its own token is not counted yet."""
SPARSE_WORKSPACE_BYTES: Final = 512 * MIB
"""Scores of a sparse indexer (LMDEPLOY_DSA_INDEXER_MAX_LOGITS_MB)."""
WINDOWLESS: Final = frozenset({"GptOssForCausalLM", "Gemma3ForConditionalGeneration"})
"""Their configuration builders set sliding_window to -1: no block is freed behind a window."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """What a start with some free memory ends in: 0 blocks where the engine stops."""

    prefill_tokens: int
    runtime_bytes: int
    cache_bytes: int
    blocks: int


def reserve(free_bytes: int, model: ModelSpec, resolved: EngineLimits, per_block_bytes: int) -> Reservation:
    """Sets run-time buffers aside before the share is taken: (prefill tokens + 2 x batch) x vocabulary x 2.

    free_bytes: after the weights and the state cache. Source: base.py (_get_runtime_size).
    """
    sparse = any(isinstance(cache, LatentAttention) and cache.sparse for cache in model.caches)
    prefill_tokens = resolved.max_num_batched_tokens
    while True:
        rows = prefill_tokens + 2 * resolved.max_num_seqs
        runtime_bytes = rows * model.vocab_size * LOGIT_BYTES + (SPARSE_WORKSPACE_BYTES if sparse else 0)
        cache_bytes = max(0, int((free_bytes - runtime_bytes) * resolved.memory_share))
        blocks = cache_bytes // per_block_bytes
        if blocks < BLOCKS_MIN or prefill_tokens == 0:
            return Reservation(
                prefill_tokens=prefill_tokens, runtime_bytes=runtime_bytes, cache_bytes=cache_bytes, blocks=0
            )
        if blocks >= BLOCKS_WANTED:
            return Reservation(
                prefill_tokens=prefill_tokens,
                runtime_bytes=runtime_bytes,
                cache_bytes=cache_bytes,
                blocks=blocks,
            )
        prefill_tokens //= 2


def state_slot_bytes(model: ModelSpec, engine: EngineSpec) -> int:
    """Bytes of one sequence's recurrent states, each kind aligned to 256; 0 for a model without.

    Source: cache_engine/state.py (get_state_slot_nbytes).
    """
    state = state_parts(model, engine)
    if state is None:
        return 0
    return aligned(state.conv_bytes) + aligned(state.recurrent_bytes)


def kv_budget(
    model: ModelSpec, gpu: GpuSpec, engine: EngineSpec, weights: Weights, *, context: Line | None = None
) -> KvBudget:
    """The ledger of one GPU and the blocks it leaves; raises SpecError where the engine would stop.

    context: what is in use beside the weights, measured; None: the prior.
    """
    check_served(model, "pytorch")
    asked = limits(model, gpu, engine)
    stored = kv_format(engine, PYTORCH_FORMATS, "the PyTorch engine")
    resolved = replace(asked, block_size=block_size_of(model, gpu, asked.block_size))
    page = page_of(model, resolved.block_size, engine, stored)
    claims = _claims(engine, weights, model, resolved, context or prior_context(engine))
    starts = _starts(gpu, claims, model, resolved, page)
    blocks = _range(starts[1].blocks, [start.blocks for start in starts])
    if engine.num_gpu_blocks_override is not None:
        blocks = Interval.exact(engine.num_gpu_blocks_override)
    ledger = _ledger(gpu, claims, starts, blocks, page, given=engine.num_gpu_blocks_override is not None)
    if blocks.likely < BLOCKS_MIN or ledger.line(LEFT_FREE).size_bytes.likely < 0:
        raise SpecError(
            f"{model.name} does not fit on {gpu.name}: {format_bytes(weights.size_bytes)} of weights a GPU "
            f"and {format_bytes(starts[1].runtime_bytes)} of buffers leave no room for the KV cache; "
            "raise --tp, lower --max-num-seqs or --max-num-batched-tokens, or take a larger GPU"
        )
    group = _group(model, resolved, page)
    return KvBudget(
        limits=_within_pool(resolved, starts[1], int(blocks.likely), group),
        ledgers=(ledger,),
        blocks=blocks,
        reserved_blocks=RESERVED_BLOCKS,
        bytes_per_block=(page.block_bytes,),
        groups=(group,),
        stored_as=stored.words if stored.key_bits < 16 else model.dtype,
        source="config" if engine.num_gpu_blocks_override is None else "flags",
        in_flight=InFlight(steps=1, chunk_tokens=resolved.max_num_batched_tokens),
        cautions=(*model.cautions, *_cautions(model, group, starts[1], resolved)),
    )


def _claims(
    engine: EngineSpec, weights: Weights, model: ModelSpec, resolved: EngineLimits, context: Line
) -> tuple[Line, ...]:
    """What is gone before the engine divides the rest."""
    lines = [
        context,
        Line(name="weights", size_bytes=Interval.exact(weights.size_bytes), source=weights.source),
    ]
    slot_bytes = state_slot_bytes(model, engine)
    if slot_bytes:
        slots = resolved.max_num_seqs + SPARE_STATES
        lines.append(
            Line(
                name="state cache",
                size_bytes=Interval.exact(slots * slot_bytes),
                source=f"{slots} slots of {format_bytes(slot_bytes)}",
            )
        )
    return tuple(lines)


def _starts(
    gpu: GpuSpec, claims: tuple[Line, ...], model: ModelSpec, resolved: EngineLimits, page: Page
) -> tuple[Reservation, Reservation, Reservation]:
    """With the least, the likely and the most memory free."""
    gone = [line.size_bytes for line in claims]
    least, likely, most = (
        reserve(gpu.memory_total_bytes - int(size), model, resolved, page.block_bytes)
        for size in (
            sum(size.high for size in gone),
            sum(size.likely for size in gone),
            sum(size.low for size in gone),
        )
    )
    return least, likely, most


def _ledger(
    gpu: GpuSpec,
    claims: tuple[Line, ...],
    starts: tuple[Reservation, Reservation, Reservation],
    blocks: Interval,
    page: Page,
    *,
    given: bool,
) -> Ledger:
    likely = starts[1]
    if given:
        cache = Interval.exact(blocks.likely * page.block_bytes)
        source = "--num-gpu-blocks-override"
    else:
        cache = _range(likely.cache_bytes, [start.cache_bytes for start in starts])
        source = "the cache share of what the lines above leave"
    runtime = Line(
        name="run-time reservation",
        size_bytes=_range(likely.runtime_bytes, [start.runtime_bytes for start in starts]),
        source=f"logits of {likely.prefill_tokens} prefill tokens and two batches",
    )
    kv_line = Line(name=KV_CACHE, size_bytes=cache, source=source)
    return settle(gpu.memory_total_bytes, (*claims, runtime, kv_line), LEFT_FREE, "outside the cache share")


def _range(likely: int, sizes: list[int]) -> Interval:
    """More memory may give fewer blocks, where less of it makes the engine halve its buffers."""
    return Interval(low=min(sizes), likely=likely, high=max(sizes))


def _group(model: ModelSpec, resolved: EngineLimits, page: Page) -> KvGroup:
    """One block table for all layers; with a sliding window in the config it holds for all of them alike.

    Source: block_manager/window_block_manager.py: after h computed tokens (h - window) // block_size blocks
    are dropped, one token later than vLLM does. State slots are outside the pool.
    """
    windows = {
        cache.window_tokens
        for cache in attention_of(model)
        if isinstance(cache, Attention) and cache.window_tokens
    }
    layers = len(attention_of(model))
    if not windows or model.architecture in WINDOWLESS:
        return full_group(resolved.block_size, layers=layers, page_bytes=page.layer_bytes)
    return KvGroup(
        kind="window",
        block_size=resolved.block_size,
        layers=layers,
        page_bytes=page.layer_bytes,
        reach_tokens=max(windows) + 1,
    )


def _within_pool(resolved: EngineLimits, start: Reservation, blocks: int, group: KvGroup) -> EngineLimits:
    """A request may not outgrow the pool less one block, unless a window bounds it (engine.py)."""
    pool_tokens = (blocks - RESERVED_BLOCKS) * resolved.block_size
    length = resolved.max_model_len
    is_bounded = group.kind == "window" and group.reach_tokens - 1 <= pool_tokens
    if not is_bounded:
        length = min(length, pool_tokens - resolved.block_size)
    return replace(
        resolved,
        max_model_len=length,
        max_num_batched_tokens=start.prefill_tokens or resolved.max_num_batched_tokens,
        in_flight_tokens=DECODED_TOKENS if group.kind == "window" else 0,
    )


def _cautions(
    model: ModelSpec, group: KvGroup, start: Reservation, resolved: EngineLimits
) -> tuple[str, ...]:
    found = [NOT_EXECUTED]
    if start.blocks and start.prefill_tokens < resolved.max_num_batched_tokens:
        found.append(f"too little memory: LMDeploy lowers max_prefill_token_num to {start.prefill_tokens}")
    if model.is_latent:
        found.append("FlashMLA is taken to be installed on a GPU of compute capability 9.0 or above")
    if group.kind == "window":
        found.append(
            "while its prompt is read a request holds the whole chunk, up to "
            f"{start.prefill_tokens} tokens, beside its window"
        )
    is_mixed = any(getattr(cache, "window_tokens", None) is None for cache in attention_of(model))
    if group.kind == "window" and is_mixed:
        found.append(
            "LMDeploy frees blocks behind the sliding window for every layer, those that attend to all "
            "tokens included: long answers may suffer"
        )
    return tuple(found)
