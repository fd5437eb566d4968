"""The blocks of a KV cache and how many one request holds, group by group. Engine-independent.

Layers that keep the same thing for the same tokens share a block table: a group. One pool of block ids
serves all groups of a server, so a request holds the sum over its groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from estimator.spec import SpecError
from estimator.units import ceil_div

NULL_BLOCKS: Final = 1
"""vLLM keeps block 0 as the null block and counts it in num_gpu_blocks."""

GroupKind = Literal["full", "window", "chunk", "state", "cross"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KvGroup:
    """One group of layers with one block table.

    full: every computed token. window: the last `reach_tokens` (and those of steps in flight). chunk: the
    tokens since the last multiple of `reach_tokens`. state: `state_blocks` however long the request is.
    cross: blocks for the encoder's `reach_tokens`. block_size in tokens; with context parallelism, of the
    whole group of ranks.
    """

    kind: GroupKind
    block_size: int
    layers: int
    page_bytes: int
    """Bytes of one block of one layer on one rank; of the whole block where layers differ."""
    reach_tokens: int = 0
    state_blocks: int = 0
    rolls: bool = False
    """A state is kept for each block of tokens until the steps that start from it are done."""
    checkpoint: bool = False
    """One more state is kept while the last chunk of a prompt is read, of its last whole block."""
    ahead_tokens: int = 0
    """Slots a step takes beyond its own tokens, for speculation; at most."""
    headline_blocks: int = 0
    """Blocks the engine's own start-up line counts for a request of max_model_len."""

    def __post_init__(self) -> None:
        if self.block_size < 1:
            raise SpecError(f"block_size must be at least 1, got {self.block_size}")
        if self.kind in ("window", "chunk") and self.reach_tokens < 1:
            raise SpecError(f"a {self.kind} must reach at least 1 token back, got {self.reach_tokens}")

    def held(self, computed_tokens: int, in_flight_tokens: int = 0) -> int:
        """Blocks held with `computed_tokens` stored, the last `in_flight_tokens` of them by running steps.

        Source: vLLM 0.32 v1/core/single_type_kv_cache_manager.py, get_num_skipped_tokens of each kind:
        a block is freed when no token after the settled ones can read it.
        """
        if self.kind == "cross":
            return self.blocks(self.reach_tokens)
        settled_tokens = max(0, computed_tokens - in_flight_tokens)
        if self.kind == "state":
            return self.held_states((settled_tokens, computed_tokens))
        kept = self.blocks(computed_tokens + self.ahead_tokens)
        return kept - self.freed_tokens(settled_tokens) // self.block_size

    def held_states(self, ends: tuple[int, ...]) -> int:
        """Blocks of a state group when the last settled step and those in flight end at these tokens."""
        if not self.rolls:
            return self.state_blocks
        return self.state_blocks - 1 + max(1, len({self.blocks(end) for end in ends if end}))

    def freed_tokens(self, settled_tokens: int) -> int:
        """Tokens at the front of which nothing needs to be kept once `settled_tokens` are computed."""
        if self.kind == "window":
            return max(0, settled_tokens - self.reach_tokens + 1)
        if self.kind == "chunk":
            return settled_tokens // self.reach_tokens * self.reach_tokens
        return 0

    def blocks(self, tokens: int) -> int:
        """Blocks that `tokens` fill from the start."""
        return ceil_div(tokens, self.block_size)


def full_group(block_size: int, *, layers: int = 1, page_bytes: int = 0) -> KvGroup:
    """The one group of a model whose layers all keep every token."""
    return KvGroup(kind="full", block_size=block_size, layers=layers, page_bytes=page_bytes)
