"""Recurrent states that roll: one for each block of tokens, kept until the steps that start from it are done.

Source: vLLM 0.32 v1/core/single_type_kv_cache_manager.py MambaManager (mamba_cache_mode "align") and
v1/core/sched/scheduler.py _mamba_block_aligned_split. A block's state exists only where a chunk ended.
"""

from __future__ import annotations

from estimator.twin.blocks import NULL_BLOCK
from estimator.twin.request import Request
from estimator.units import ceil_div


def read_to(request: Request) -> int:
    """Where reading ends: at the prompt's end, or at the last token that a preempted request had."""
    return max(request.prompt_tokens, request.tokens - 1)


def saves_checkpoint(size: int, start: int, end: int, reading_end: int) -> bool:
    """Whether a chunk from `start` to `end` can save the state of its last whole block besides its own.

    Source: v1/kv_cache_interface.py is_mamba_prefill_checkpoint_valid.
    """
    saved = (reading_end - 1) // size * size
    is_apart = ceil_div(end, size) - 2 > (start - 1) // size
    return start % size == 0 and is_apart and start + size <= saved < end


def aligned_chunk(request: Request, tokens: int, size: int, budget_tokens: int, has_checkpoint: bool) -> int:
    """How many of the next `tokens` a step computes, so that it ends where a state must be kept."""
    start, reading_end = request.computed_tokens, read_to(request)
    end = start + tokens
    if start >= reading_end:
        return tokens
    is_saved = has_checkpoint and end >= reading_end and saves_checkpoint(size, start, end, reading_end)
    aligned = end // size * size
    if end < reading_end and (aligned > start or size <= budget_tokens):
        end = aligned
    stops = [start + (request.junction - start) // size * size if start < request.junction < end else 0]
    if not is_saved:
        stops += [(start // size + 1) * size if start % size else 0, (request.tokens - 1) // size * size]
    return max(0, min((stop for stop in stops if start < stop < end), default=end) - start)


def skip_states(ids: list[int], skipped: int, guess_blocks: int) -> None:
    """Pads a table up to `skipped` positions; blocks for guessed tokens move along to its end."""
    before = len(ids)
    ids += [NULL_BLOCK] * (skipped - before)
    for position in range(before - guess_blocks, min(before, skipped)):
        ids.append(ids[position])
        ids[position] = NULL_BLOCK
