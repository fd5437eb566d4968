"""Which light loads tell what a step costs: waves of equal streams, each for one coefficient or two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from estimator.errors import PlainError

REPEATS: Final = 3
STREAMS: Final = (1, 2, 4, 8, 16, 32)
PROMPT_TOKENS: Final = 64
"""Short, so that the wave decodes most of its time."""
DECODE_TOKENS: Final = 64
PROMPTS_TOKENS: Final = (32, 128, 256, 512, 1024, 2000)
LONG_STREAMS: Final = (1, 4, 8)
LONG_PROMPT_TOKENS: Final = 1024
POOL_SHARE_MAX: Final = 0.5
"""Of the KV cache a wave may fill: a full one would queue and preempt, which is not what is measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wave:
    """`streams` equal requests sent at the same moment."""

    streams: int
    input_tokens: int
    output_tokens: int

    @property
    def is_prefill(self) -> bool:
        """One prompt alone and its first token: a step that does nothing else."""
        return self.streams == 1 and self.output_tokens == 1

    @property
    def tokens(self) -> int:
        return self.streams * (self.input_tokens + self.output_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What the server can take; None where it does not say."""

    max_model_len: int | None = None
    kv_tokens: int | None = None
    max_num_seqs: int | None = None
    shortest_input_tokens: int = 1
    """What a unique prompt needs at least."""

    def takes(self, wave: Wave) -> bool:
        if wave.input_tokens < self.shortest_input_tokens:
            return False
        if self.max_num_seqs is not None and wave.streams > self.max_num_seqs:
            return False
        if self.kv_tokens is not None and wave.tokens > self.kv_tokens * POOL_SHARE_MAX:
            return False
        return self.max_model_len is None or wave.input_tokens + wave.output_tokens <= self.max_model_len


def waves(room: Room) -> tuple[Wave, ...]:
    """All repeats in turns, so that a slow moment of the machine does not fall on one kind alone.

    Raises PlainError when the server has no room for a decode wave and three lengths of prompt.
    """
    short = max(PROMPT_TOKENS, room.shortest_input_tokens)
    wanted = [Wave(streams=n, input_tokens=short, output_tokens=DECODE_TOKENS) for n in STREAMS]
    wanted += [Wave(streams=1, input_tokens=tokens, output_tokens=1) for tokens in PROMPTS_TOKENS]
    wanted += [
        Wave(streams=n, input_tokens=LONG_PROMPT_TOKENS, output_tokens=DECODE_TOKENS) for n in LONG_STREAMS
    ]
    once = tuple(wave for wave in wanted if room.takes(wave))
    if sum(wave.is_prefill for wave in once) < 3 or all(wave.is_prefill for wave in once):
        raise PlainError(
            "the server has too little room to be calibrated: it must take prompts of 512 tokens and "
            f"{DECODE_TOKENS} tokens of answer; raise --max-model-len or its KV cache"
        )
    return once * REPEATS
