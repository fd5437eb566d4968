"""How many blocks a request holds over its life: while its prompt is read, while it decodes, on average.

Source: vLLM 0.32 v1/core/kv_cache_manager.py allocate_slots, reproduced against vLLM's own manager for every
kind of group (tests/estimator/vllm_cache/test_held.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from estimator.kv_group import KvGroup
from estimator.spec import Lengths, Workload

SHARES: Final = 64
"""Evenly spaced shares at which a length distribution is averaged: exact for constants."""
SHARES_OF_TWO: Final = 32
"""The same where prompts and answers both vary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InFlight:
    """What steps under way keep from being freed: so many steps, and tokens of a prompt in each at most.

    vLLM with async scheduling has two (one more for each further pipeline stage), without it one a stage.
    """

    steps: int
    chunk_tokens: int

    @property
    def tokens(self) -> int:
        """What all prompts together can have in flight."""
        return self.steps * self.chunk_tokens


TWO_STEPS: Final = InFlight(steps=2, chunk_tokens=8192)


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Blocks one request occupies.

    start: when its shortest prompt is in. longest: the most while it decodes, at any length it can reach.
    mean: over its decode steps. prefill: the most while its longest prompt is read. in_flight: what all
    prompts together may hold beyond `longest`, however many requests there are (their tokens in flight
    share one budget). admission: what must be free before its longest prompt is let in.
    """

    start_blocks: int
    longest_blocks: int
    mean_blocks: float
    prefill_blocks: int = 0
    in_flight_blocks: int = 0
    admission_blocks: int = 0

    def guaranteed(self, usable_blocks: int) -> int:
        """Requests that fit whatever each of them does: nothing is ever preempted, and the last is let in.

        All may stand at their longest while the prompts among them hold the whole budget in flight; or,
        when there are too few for that to matter, each at the worst moment of its life. The last request
        is let in when its admission fits beside all others at their longest.
        """
        worst = max(self.longest_blocks, self.prefill_blocks)
        shared = max(0, usable_blocks - self.in_flight_blocks) // self.longest_blocks
        let_in = (usable_blocks - self.admission_blocks) // self.longest_blocks + 1
        return max(0, min(let_in, max(usable_blocks // worst, shared)))


def held_over_life(groups: Sequence[KvGroup], workload: Workload, in_flight: InFlight) -> Held:
    """Blocks a request of this workload holds, its mean weighted by how long it stays.

    A request decodes output - 1 steps (the first token falls out of the prefill), so a long answer weighs
    more than a short one. During the first of them the end of its prompt is still in flight. The mean is
    vLLM's own for constant lengths.
    """
    alike = Counter(groups)
    prompts, answers = _typical(workload)
    block_steps, steps = 0, 0
    for prompt in prompts:
        before = _decode_sum(alike, prompt, in_flight.steps)
        *_, read = held_by_step(groups, prompt, 1, in_flight)
        tail = list(_tail(groups, prompt, in_flight))
        for answer in answers:
            if answer == 1:  # never decodes: what counts is the step that read it
                block_steps, steps = block_steps + read, steps + 1
                continue
            decode_steps = answer - 1
            last = prompt + decode_steps
            block_steps += _decode_sum(alike, last, in_flight.steps) - before + sum(tail[:decode_steps])
            steps += decode_steps
    longest, prompt = workload.longest_tokens, workload.input_tokens.longest
    read_tokens = min(longest, prompt + in_flight.steps - 1)  # its first tokens join its last chunk
    return Held(
        start_blocks=sum(group.held(workload.input_tokens.shortest) for group in groups),
        longest_blocks=sum(most_decoding(group, longest, in_flight) for group in groups),
        mean_blocks=block_steps / steps,
        prefill_blocks=sum(most_reading(group, read_tokens, in_flight) for group in groups),
        in_flight_blocks=sum(_beyond(group, workload, in_flight) for group in groups),
        admission_blocks=sum(_admission(group, prompt, in_flight) for group in groups),
    )


def held_by_step(groups: Sequence[KvGroup], prompt: int, answer: int, in_flight: InFlight) -> Iterator[int]:
    """Blocks held after each step of a request that has the batch to itself: its chunks, then its decoding.

    Exactly what vLLM's own manager gives it. Chunks are len(prompt_ends(...)).
    """
    ends = [0, *prompt_ends(groups, prompt, in_flight)]
    chunks = len(ends) - 1
    ends += range(prompt + 1, prompt + answer)
    for step in range(1, len(ends)):
        recent = tuple(ends[max(0, step - in_flight.steps) : step + 1])
        reading = max(0, step - in_flight.steps + 1) <= chunks <= step
        yield sum(
            _held_at(group, recent, ends[chunks - 1 : chunks + 1] if reading else []) for group in groups
        )


def prompt_ends(groups: Sequence[KvGroup], prompt: int, in_flight: InFlight) -> list[int]:
    """Tokens computed after each chunk of a prompt; chunks end at whole states where states roll.

    Source: vLLM 0.32 v1/core/sched/scheduler.py _mamba_block_aligned_split.
    """
    rolling = next((group for group in groups if group.kind == "state" and group.rolls), None)
    ends = [0]
    while ends[-1] < prompt:
        end = min(ends[-1] + in_flight.chunk_tokens, prompt)
        ends.append(end if rolling is None else _aligned(rolling, ends[-1], end, prompt, in_flight))
    return ends[1:]


def _aligned(group: KvGroup, start: int, end: int, prompt: int, in_flight: InFlight) -> int:
    size = group.block_size
    if end < prompt and (end // size * size > start or size <= in_flight.chunk_tokens):
        end = end // size * size
    if end == prompt and _has_checkpoint(group, start, end):
        return end
    stops = ((start // size + 1) * size if start % size else 0, (prompt - 1) // size * size)
    return min((stop for stop in stops if start < stop < end), default=end)


def _has_checkpoint(group: KvGroup, start: int, end: int) -> bool:
    """Source: vLLM 0.32 v1/kv_cache_interface.py is_mamba_prefill_checkpoint_valid."""
    size = group.block_size
    saved = (end - 1) // size * size
    is_apart = group.blocks(end) - 2 > (start - 1) // size
    return group.checkpoint and start % size == 0 and is_apart and start + size <= saved


def _held_at(group: KvGroup, ends: tuple[int, ...], last_chunk: Sequence[int]) -> int:
    """ends: of the last settled step and of those in flight. last_chunk: its bounds while it is in flight."""
    if group.kind != "state":
        return group.held(ends[-1], ends[-1] - ends[0])
    return group.held_states(ends) + (bool(last_chunk) and _has_checkpoint(group, *last_chunk))


def _tail(groups: Sequence[KvGroup], prompt: int, in_flight: InFlight) -> Iterator[int]:
    """Blocks the prompt's end keeps beyond what decoding alone would, for the first steps of decoding."""
    steps = in_flight.steps
    chunks = len(prompt_ends(groups, prompt, in_flight))
    for step, held in enumerate(held_by_step(groups, prompt, steps, in_flight), 1 - chunks):
        if step > 0:
            yield held - sum(group.held(prompt + step, steps) for group in groups)


def most_decoding(group: KvGroup, tokens: int, in_flight: InFlight) -> int:
    """The most blocks held while decoding at any length up to `tokens`."""
    if group.kind == "state":
        return group.state_blocks + (group.rolls and tokens > group.block_size)
    return _most(group, tokens, in_flight.steps)


def most_reading(group: KvGroup, prompt: int, in_flight: InFlight) -> int:
    """The most blocks held while a prompt is read, wherever its chunks begin."""
    if group.kind != "state":
        return _most(group, prompt, min(prompt, in_flight.tokens))
    others = min(group.blocks(prompt) - 1, in_flight.steps + group.checkpoint)
    return group.state_blocks + group.rolls * others


def _most(group: KvGroup, tokens: int, in_flight_tokens: int) -> int:
    """Blocks that the kept tokens touch at most, as they may begin and end anywhere in a block."""
    everything = group.held(tokens) if group.kind in ("full", "cross") else group.blocks(tokens)
    ahead = in_flight_tokens + group.ahead_tokens
    if group.kind == "window":
        return min(group.blocks(tokens + group.ahead_tokens), _touched(group, group.reach_tokens - 1 + ahead))
    if group.kind == "chunk":
        span = group.reach_tokens - 1 + ahead
        starts_whole = group.reach_tokens % group.block_size == 0
        most = group.blocks(span) if starts_whole else _touched(group, span)
        return min(group.blocks(tokens + group.ahead_tokens), most)
    return everything


def _touched(group: KvGroup, tokens: int) -> int:
    return group.blocks(tokens - 1) + 1


def _beyond(group: KvGroup, workload: Workload, in_flight: InFlight) -> int:
    """Blocks that prompts in flight keep in a group that otherwise frees: their tokens share one budget.

    A prompt read in one go keeps less than a block for each of its tokens / block_size beyond what decoding
    takes; one that goes on from a step before, of which each step has one at most, up to a block more. A
    state beyond the two of decoding takes a whole block of tokens in flight, and so does a checkpoint.
    """
    reading = most_reading(group, workload.input_tokens.longest, in_flight)
    if reading <= most_decoding(group, workload.longest_tokens, in_flight):
        return 0
    if group.kind == "state":
        return (1 + group.checkpoint) * (in_flight.tokens // group.block_size)
    return group.blocks(in_flight.tokens) + in_flight.steps


def _admission(group: KvGroup, prompt: int, in_flight: InFlight) -> int:
    """Blocks that must be free at once: a group that frees asks for no more than it can ever hold.

    Source: vLLM 0.32 max_admission_blocks_per_request of the specs, kv_cache_manager.py
    (full_sequence_must_fit).
    """
    if group.kind == "state":
        return group.state_blocks + (group.checkpoint and prompt > group.block_size)
    if group.kind == "window":
        most = group.blocks(group.reach_tokens - 1 + in_flight.tokens) + 1
        return min(group.blocks(prompt), most)
    if group.kind == "chunk":
        return min(group.blocks(prompt), group.blocks(group.reach_tokens + in_flight.tokens))
    return group.held(prompt)


def _decode_sum(alike: Mapping[KvGroup, int], tokens: int, steps: int) -> int:
    """Sum of held(n, steps) for n = 1..tokens over all groups, in closed form; alike: groups counted."""
    return sum(count * _held_sum(group, tokens, steps) for group, count in alike.items())


def _held_sum(group: KvGroup, tokens: int, steps: int) -> int:
    size, settled = group.block_size, tokens - steps
    if group.kind == "cross":
        return tokens * group.blocks(group.reach_tokens)
    if group.kind == "state":
        crossing = _ceil_sum(tokens, size) - _ceil_sum(settled, size) - min(tokens, steps)
        return tokens * group.state_blocks + group.rolls * crossing
    kept = _ceil_sum(tokens + group.ahead_tokens, size) - _ceil_sum(group.ahead_tokens, size)
    if group.kind == "window":
        return kept - _floor_sum(settled - group.reach_tokens + 1, size)
    if group.kind == "chunk":
        return kept - _chunk_sum(group, settled)
    return kept


def _chunk_sum(group: KvGroup, settled: int) -> int:
    """Sum of the blocks before the current chunk when 1..settled tokens are settled."""
    reach, size = group.reach_tokens, group.block_size
    if settled < reach:
        return 0
    if reach % size == 0:
        return reach // size * _floor_sum(settled, reach)
    whole = settled // reach
    sums = sum(chunk * reach // size for chunk in range(1, whole)) * reach
    return sums + whole * reach // size * (settled - whole * reach + 1)


def _ceil_sum(tokens: int, size: int) -> int:
    """Sum of ceil(n / size) for n = 1..tokens."""
    full, rest = divmod(max(0, tokens), size)
    return size * full * (full + 1) // 2 + rest * (full + 1)


def _floor_sum(tokens: int, size: int) -> int:
    """Sum of n // size for n = 1..tokens."""
    full, rest = divmod(max(0, tokens + 1), size)
    return size * full * (full - 1) // 2 + rest * full


def _typical(workload: Workload) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Prompt and answer lengths to average over, each as likely as the other."""
    both = (workload.input_tokens, workload.output_tokens)
    shares = SHARES_OF_TWO if all(lengths.kind != "constant" for lengths in both) else SHARES
    prompts, answers = (_spread(lengths, shares) for lengths in both)
    return prompts, answers


def _spread(lengths: Lengths, shares: int) -> tuple[int, ...]:
    if lengths.kind == "constant":
        return (lengths.longest,)
    return tuple(lengths.at((i + 0.5) / shares) for i in range(shares))
