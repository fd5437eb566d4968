"""The KV cache as the scheduler sees it: block tables of several cache groups over one pool.

Source: vLLM 0.32 v1/core/kv_cache_manager.py allocate_slots and single_type_kv_cache_manager.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from estimator.kv_group import KvGroup
from estimator.spec import SpecError
from estimator.twin.blocks import NULL_BLOCK, BlockPool
from estimator.twin.limits import EngineLimits
from estimator.twin.request import BlockTable, Request
from estimator.units import ceil_div

NEVER: Final = 1 << 62


class KvCache:
    """Who holds which block. It changes the pool and the requests' tables, nothing else."""

    def __init__(self, limits: EngineLimits) -> None:
        self.pool = BlockPool(limits.num_gpu_blocks)
        self.groups = tuple(_Group(group, limits) for group in limits.cache_groups)
        self._caching = limits.enable_prefix_caching
        self._state_size = next((group.block_size for group in limits.cache_groups if group.rolls), 0)
        self._max_num_batched_tokens = limits.max_num_batched_tokens
        group = limits.cache_groups[0]
        self.grows_alike = len(self.groups) == 1 and group.kind == "full" and not group.ahead_tokens
        """Every table changes by one block every block_size tokens, and in no other way."""
        self.grows_alike &= not self._caching

    def refuse_if_endless(self, tokens_max: int) -> None:
        """Raises SpecError for a request of `tokens_max` tokens that would wait for ever."""
        # The last token is sampled but never computed, so it needs no slot.
        longest_blocks = sum(min(group.length(tokens_max - 1), group.most_blocks) for group in self.groups)
        if longest_blocks > self.pool.usable_blocks:
            raise SpecError(
                f"a request of {tokens_max} tokens needs {longest_blocks} blocks and the cache has "
                f"{self.pool.usable_blocks}; shorten it or enlarge the cache"
            )

    def find_prefix(self, request: Request) -> list[int]:
        """Blocks that already hold the beginning of the request; its last token is always computed anew."""
        found: list[int] = []
        if self._caching:
            size = self.groups[0].size
            for position in range((request.tokens - 1) // size):
                block = self.pool.find(request.content(position, size))
                if block is None:
                    break
                found.append(block)
        return found

    def chunk(self, request: Request, tokens: int) -> int:
        """How many of the next `tokens` a step computes: fewer where a state must be kept at a block's end.

        Source: v1/core/sched/scheduler.py _mamba_block_aligned_split, without a prompt checkpoint.
        """
        if self._state_size == 0:
            return tokens
        size, start = self._state_size, request.computed_tokens
        end, read = start + tokens, max(request.prompt_tokens, request.tokens - 1)
        if start >= read:
            return tokens
        aligned = end // size * size
        if end < read and (aligned > start or size <= self._max_num_batched_tokens):
            end = aligned
        stops = ((start // size + 1) * size if start % size else 0, (request.tokens - 1) // size * size)
        return max(0, min((stop for stop in stops if start < stop < end), default=end) - start)

    def admit(self, request: Request, found: list[int], computed: int, reserve_blocks: int) -> bool:
        """Gives blocks for the first `computed` tokens, if the whole sequence would fit beside the reserve.

        The whole is what scheduler_reserve_full_isl asks for: a group that gives blocks back on the way
        asks for no more than it can ever hold.
        """
        tables = tuple([BlockTable() for _ in self.groups])
        whole = sum([group.admission_blocks(request.known) for group in self.groups])
        now = sum([group.missing(table, computed) for group, table in zip(self.groups, tables, strict=True)])
        needed = max(whole, now) - len(found) + self.pool.count_idle(found) + reserve_blocks
        if needed > self.pool.free_blocks:
            return False
        request.tables = tables
        if found:
            self.pool.hold(found)
            tables[0].ids += found
            tables[0].stored = len(found)
        for group, table in zip(self.groups, tables, strict=True):
            self._take(group, table, request, computed)
        return True

    def extend(self, request: Request, settled: int, computed: int) -> bool:
        """Blocks for `computed` tokens when `settled` are done; False when there are too few free ones.

        What no later token can read is given back first, also when it does not help.
        """
        decodes = computed - settled == 1
        changing = []
        missing = 0
        for group, table in zip(self.groups, request.tables, strict=True):
            if decodes and computed < table.change:
                continue
            if group.gives_back:
                self._give_back(group, table, settled)
            missing += group.missing(table, computed)
            changing.append((group, table))
        if missing > self.pool.free_blocks:
            return False
        for group, table in changing:
            self._take(group, table, request, computed)
        return True

    def append_blocks(self, requests: Sequence[Request]) -> bool:
        """One more block for each, in order, if there are enough; only for tables that grow alike."""
        if len(requests) > self.pool.free_blocks:
            return False
        for request, block in zip(requests, self.pool.allocate(len(requests)), strict=True):
            request.tables[0].ids.append(block)
        return True

    def release(self, request: Request) -> None:
        for group, table in zip(self.groups, request.tables, strict=False):  # none while it waits
            self.pool.free([block for block in table.ids if block] if group.gives_back else table.ids)
        request.tables = ()

    def _take(self, group: _Group, table: BlockTable, request: Request, computed: int) -> None:
        length = group.length(computed)
        if length > len(table.ids):
            if group.rolls:
                _skip_states(table.ids, length, group.state_blocks)
            table.ids += self.pool.allocate(length - len(table.ids))
        if self._caching:
            for position in range(table.stored, computed // group.size):
                self.pool.store(table.ids[position], request.content(position, group.size))
                table.stored = position + 1
        table.change = group.next_change(table, computed)
        if self._caching:
            table.change = min(table.change, (table.stored + 1) * group.size)

    def _give_back(self, group: _Group, table: BlockTable, settled: int) -> None:
        passed = min(group.passed(settled), len(table.ids))
        if passed > table.passed:
            window = range(table.passed, passed)
            self.pool.free([table.ids[position] for position in window if table.ids[position]])
            for position in window:
                table.ids[position] = NULL_BLOCK
            table.passed = passed


class _Group:
    """The rules of one cache group: how long its table is, and when it changes."""

    def __init__(self, group: KvGroup, limits: EngineLimits) -> None:
        self.size = group.block_size
        self.rolls = group.rolls
        self.gives_back = group.kind in ("window", "chunk") or group.rolls
        self.state_blocks = group.state_blocks
        self._group = group
        self._ahead_tokens = group.ahead_tokens
        self._tokens_max = limits.max_model_len
        self._fixed_blocks = _fixed_blocks(group)
        self._cap_blocks = _cap_blocks(group, limits)
        self.most_blocks = self._cap_blocks + group.rolls + group.blocks(group.ahead_tokens)

    def length(self, computed: int) -> int:
        """Positions of the table when `computed` tokens have a slot."""
        if self._fixed_blocks:
            return self._fixed_blocks
        if self.rolls:
            return self.state_blocks - 1 + ceil_div(computed, self.size)
        tokens = computed + self._ahead_tokens
        return -(-(tokens if tokens < self._tokens_max else self._tokens_max) // self.size)

    def missing(self, table: BlockTable, computed: int) -> int:
        """Blocks to be taken for `computed` tokens: of a chunk's states only the last is kept."""
        missing = self.length(computed) - len(table.ids)
        if self.rolls:
            missing = min(missing, 1 if table.ids else self.state_blocks)
        return missing if missing > 0 else 0

    def admission_blocks(self, tokens: int) -> int:
        """Blocks a sequence of `tokens` asks for before it is let in; slots ahead are not counted."""
        return self.state_blocks or self._fixed_blocks or min(ceil_div(tokens, self.size), self._cap_blocks)

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

    def _next_passed(self, table: BlockTable, settled: int) -> int:
        """The next count of settled tokens at which one more position can be given back."""
        if self.passed(settled) > table.passed:
            return settled
        end = (table.passed + 1) * self.size
        if self.rolls:
            return end + 1
        reach = self._group.reach_tokens
        return ceil_div(end, reach) * reach if self._group.kind == "chunk" else end + reach - 1


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


def _skip_states(ids: list[int], length: int, state_blocks: int) -> None:
    """Pads the table so that one state is missing; blocks for guessed tokens move along to its end."""
    before, skipped = len(ids), length - state_blocks
    ids += [NULL_BLOCK] * (skipped - before)
    if before:
        for position in range(before - state_blocks + 1, min(before, skipped)):
            ids.append(ids[position])
            ids[position] = NULL_BLOCK
