"""How many blocks a request holds over its life: while its prompt is read, while it decodes, on average.

Source: vLLM 0.32 v1/core/kv_cache_manager.py allocate_slots, reproduced against vLLM's own manager for every
kind of group (tests/estimator/test_oracle.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from estimator.kv_group import KvGroup
from estimator.spec import Lengths, Workload
from estimator.units import ceil_div

_SHARES: Final = tuple((i + 0.5) / 64 for i in range(64))
"""Evenly spaced shares at which a length distribution is averaged: exact for constants."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InFlight:
    """What steps under way keep from being freed: so many steps, and tokens of a prompt in each at most.

    vLLM with async scheduling has two (one more for each further pipeline stage), without it one a stage.
    """

    steps: int
    chunk_tokens: int


TWO_STEPS: Final = InFlight(steps=2, chunk_tokens=8192)


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Blocks one request occupies.

    start: when its shortest prompt is in. longest: the most while it decodes, at any length it can reach.
    mean: over its decode steps. prefill: the most while its longest prompt is read. in_flight: what all
    prompts together may hold beyond `longest`, however many requests there are (their tokens in flight
    share one budget).
    """

    start_blocks: int
    longest_blocks: int
    mean_blocks: float
    prefill_blocks: int = 0
    in_flight_blocks: int = 0

    def guaranteed(self, usable_blocks: int) -> int:
        """Requests that fit whatever each of them does: nothing is ever preempted.

        All may stand at their longest while the prompts among them hold the whole budget in flight; or,
        when there are too few for that to matter, each at the worst moment of its life.
        """
        worst = max(self.longest_blocks, self.prefill_blocks)
        shared = max(0, usable_blocks - self.in_flight_blocks) // self.longest_blocks
        return max(usable_blocks // worst, shared)


def held_over_life(groups: Sequence[KvGroup], workload: Workload, in_flight: InFlight) -> Held:
    """Blocks a request of this workload holds, its mean weighted by how long it stays.

    A request decodes output - 1 steps (the first token falls out of the prefill) and holds
    held(input + j) during the j-th, so a long answer weighs more than a short one. During the first, the
    last chunk of its prompt is still in flight. The mean is vLLM's own for constant lengths.
    """
    block_steps = 0
    steps = 0
    for prompt in _typical(workload.input_tokens):
        for output in _typical(workload.output_tokens):
            decode_steps = max(output - 1, 1)
            first = prompt if output == 1 else prompt + 1
            chunk = (prompt - 1) % in_flight.chunk_tokens + 1
            for group in groups:
                block_steps += _held_sum(group, first, first + decode_steps - 1, in_flight.steps)
                block_steps += group.held(first, in_flight.steps - 1 + chunk) - group.held(
                    first, in_flight.steps
                )
            steps += decode_steps
    longest = workload.longest_tokens
    prompt = workload.input_tokens.longest
    return Held(
        start_blocks=_sum(groups, workload.input_tokens.shortest, 0),
        longest_blocks=sum(most_held(group, longest, in_flight.steps) for group in groups),
        mean_blocks=block_steps / steps,
        prefill_blocks=sum(
            most_held(group, prompt, _prompt_in_flight(prompt, in_flight)) for group in groups
        ),
        in_flight_blocks=sum(_beyond(group, in_flight) for group in groups),
    )


def _prompt_in_flight(prompt: int, in_flight: InFlight) -> int:
    return min(prompt, in_flight.steps * in_flight.chunk_tokens)


def most_held(group: KvGroup, tokens: int, in_flight_tokens: int) -> int:
    """The most blocks held at any length up to `tokens`; a window's and a chunk's have their most before."""
    if group.kind in ("full", "cross"):
        return group.held(tokens)
    near = range(max(1, tokens - 2 * group.block_size), tokens + 1)
    candidates = [*near]
    if group.kind == "chunk":
        ends = tokens // group.reach_tokens * group.reach_tokens
        candidates += [length for length in (ends, ends + in_flight_tokens - 1) if 1 <= length <= tokens]
    return max(group.held(length, in_flight_tokens) for length in candidates)


def _beyond(group: KvGroup, in_flight: InFlight) -> int:
    """Blocks that prompts in flight keep in a group that otherwise frees: their tokens share one budget.

    A prompt whose tokens fill k blocks in flight holds k more than it will while it decodes, and one more for
    the block its chunk ends in.
    """
    if group.kind in ("full", "cross"):
        return 0
    if group.kind == "state":
        return max(0, group.state_blocks - 2) * in_flight.steps
    return ceil_div(in_flight.steps * in_flight.chunk_tokens, group.block_size) + in_flight.steps


def _sum(groups: Sequence[KvGroup], tokens: int, in_flight_tokens: int) -> int:
    return sum(group.held(tokens, in_flight_tokens) for group in groups)


def _held_sum(group: KvGroup, first: int, last: int, in_flight_tokens: int) -> int:
    """Sum of held(n, in_flight_tokens) for n = first..last, in closed form."""
    count = last - first + 1
    if group.kind == "cross":
        return count * group.held(first)
    size = group.block_size
    blocks = _ceil_sum(last, size) - _ceil_sum(first - 1, size)
    settled_first, settled_last = first - in_flight_tokens, last - in_flight_tokens
    if group.kind == "window":
        behind = group.reach_tokens - 1
        return blocks - _floor_sum(settled_first - behind, settled_last - behind, size)
    if group.kind == "state":
        freed = _floor_sum(settled_first - 1, settled_last - 1, size)
        return blocks - freed + count * group.draft_blocks
    if group.kind == "chunk":
        return blocks - _chunk_sum(group, settled_first, settled_last)
    return blocks


def _chunk_sum(group: KvGroup, first: int, last: int) -> int:
    """Sum of the blocks before the current chunk for settled tokens first..last."""
    reach, size = group.reach_tokens, group.block_size
    if reach % size == 0:
        return reach // size * _floor_sum(first, last, reach)
    return sum(group.freed_tokens(max(0, settled)) // size for settled in range(first, last + 1))


def _ceil_sum(tokens: int, size: int) -> int:
    """Sum of ceil(n / size) for n = 1..tokens."""
    full, rest = divmod(max(0, tokens), size)
    return size * full * (full + 1) // 2 + rest * (full + 1)


def _floor_sum(first: int, last: int, size: int) -> int:
    """Sum of max(0, n) // size for n = first..last."""

    def up_to(tokens: int) -> int:
        full, rest = divmod(max(0, tokens + 1), size)
        return size * full * (full - 1) // 2 + rest * full

    return up_to(last) - up_to(first - 1)


def _typical(lengths: Lengths) -> tuple[int, ...]:
    return (lengths.longest,) if lengths.kind == "constant" else tuple(lengths.at(share) for share in _SHARES)
