"""The rules of one cache group: how long a block table is, when it changes, what of it others may find.

Source: vLLM 0.32 v1/core/single_type_kv_cache_manager.py, a manager for each kind.
"""

from __future__ import annotations

from typing import Final

from estimator.kv_group import KvGroup
from estimator.twin.limits import EngineLimits
from estimator.twin.request import BlockTable, Request
from estimator.twin.states import read_to, saves_checkpoint
from estimator.units import ceil_div

NEVER: Final = 1 << 62


class GroupRules:
    """One cache group under the flags of a server."""

    def __init__(self, group: KvGroup, limits: EngineLimits) -> None:
        self.kind = group.kind
        self.size = group.block_size
        self.rolls = group.rolls
        self.checkpoint = group.checkpoint
        self.gives_back = group.kind in ("window", "chunk") or group.rolls
        self.state_blocks = group.state_blocks
        self.reach_tokens = group.reach_tokens
        self.tail_blocks = ceil_div(group.reach_tokens - 1, group.block_size) if group.kind == "window" else 1
        """Blocks at the end of a prefix without which it is of no use: of windows and states."""
        self._group = group
        self._ahead_tokens = group.ahead_tokens
        self._tokens_max = limits.max_model_len
        self._interval_tokens = limits.prefix_cache_retention_interval
        self._fixed_blocks = _fixed_blocks(group)
        self._cap_blocks = _cap_blocks(group, limits)
        ahead_blocks = group.blocks(group.ahead_tokens)
        self.most_blocks = self._cap_blocks + group.rolls + group.checkpoint + ahead_blocks

    def length(self, computed: int) -> int:
        """Positions of the table when `computed` tokens have a slot."""
        if self._fixed_blocks:
            return self._fixed_blocks
        if self.rolls:
            return self.state_blocks - 1 + ceil_div(computed, self.size)
        tokens = computed + self._ahead_tokens
        return -(-(tokens if tokens < self._tokens_max else self._tokens_max) // self.size)

    def saves(self, table: BlockTable, request: Request, start: int, end: int) -> bool:
        """Whether the step from `start` to `end` takes one more block, where checkpoints are kept.

        Only the step that ends the reading does, unless states are kept on the way too.
        """
        if not saves_checkpoint(self.size, start, end, end):
            return False
        if self._interval_tokens == 0 and end < read_to(request):
            return False
        position = ceil_div(end, self.size) - 2
        if position >= len(table.ids) or not table.ids[position]:
            return True
        return table.begun and position >= len(table.ids) - (self.state_blocks - 1)

    def missing(self, table: BlockTable, computed: int) -> int:
        """Blocks to be taken for `computed` tokens: of a chunk's states only the last is kept."""
        missing = self.length(computed) - len(table.ids)
        if self.rolls:
            missing = min(missing, (1 if table.begun else self.state_blocks) + table.saves)
        return missing if missing > 0 else 0

    def admission_blocks(self, table: BlockTable, tokens: int) -> int:
        """Blocks a sequence of `tokens` asks for before it is let in, beside those it found."""
        if self.state_blocks:
            return self.state_blocks + table.saves
        blocks = min(ceil_div(tokens, self.size), self._cap_blocks)
        return self._fixed_blocks or max(0, blocks - len(table.ids))

    def passed(self, settled: int) -> int:
        """Positions at the front that no token after the settled ones can read."""
        if self.rolls:
            return max(0, settled - 1) // self.size
        return self._group.freed_tokens(settled) // self.size

    def next_change(self, table: BlockTable, computed: int) -> int:
        """Computed tokens at which the table changes next, if they come one at a time."""
        if self._fixed_blocks:
            return NEVER
        blocks = len(table.ids) - (self.state_blocks - 1 if self.rolls else 0)
        room = blocks * self.size
        full = room - self._ahead_tokens + 1 if room < self._tokens_max else NEVER
        if not self.gives_back:
            return full
        return min(full, 1 + self._next_passed(table, computed))

    def is_kept(self, position: int, boundaries: tuple[int, ...]) -> bool:
        """Whether a block stays for others to find; boundaries: tokens of the prefixes they may share.

        Of a window or a state only the end of such a prefix is of use, and what ends every
        prefix_cache_retention_interval tokens. Source: reachable_block_mask of the managers.
        """
        if self.kind not in ("window", "state"):
            return True
        tail, interval_tokens = self.tail_blocks, self._interval_tokens
        if interval_tokens is None:
            return tail > 0
        interval = interval_tokens // self.size
        if interval and position % interval >= interval - tail:
            return True
        return any(end // self.size - tail <= position < end // self.size for end in boundaries)

    def _next_passed(self, table: BlockTable, settled: int) -> int:
        """The next count of settled tokens at which one more position can be given back."""
        if self.passed(settled) > table.passed:
            return settled
        end = (table.passed + 1) * self.size
        if self.rolls:
            return end + 1
        reach = self.reach_tokens
        return ceil_div(end, reach) * reach if self.kind == "chunk" else end + reach - 1


def _fixed_blocks(group: KvGroup) -> int:
    """Blocks of a group whose tables never change; 0 for the others."""
    if group.kind == "cross":
        return group.blocks(group.reach_tokens)
    return group.state_blocks if group.kind == "state" and not group.rolls else 0


def _cap_blocks(group: KvGroup, limits: EngineLimits) -> int:
    """Blocks a request can hold at most (max_admission_blocks_per_request of the specs)."""
    in_flight = limits.max_in_flight_tokens
    match group.kind:
        case "window":
            return group.blocks(min(group.reach_tokens - 1 + in_flight, limits.max_model_len)) + 1
        case "chunk":
            return group.blocks(min(group.reach_tokens + in_flight, limits.max_model_len))
        case "state":
            return group.state_blocks
        case _:
            return NEVER
