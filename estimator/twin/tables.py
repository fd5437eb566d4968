"""The KV cache as the scheduler sees it: block tables of several cache groups over one pool.

Source: vLLM 0.32 v1/core/kv_cache_manager.py allocate_slots and single_type_kv_cache_manager.py.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from estimator.spec import SpecError
from estimator.twin.blocks import NULL_BLOCK, BlockPool
from estimator.twin.group_rules import GroupRules
from estimator.twin.limits import EngineLimits
from estimator.twin.prefixes import Hit, PrefixFinder, content_in
from estimator.twin.request import BlockTable, Request
from estimator.twin.states import aligned_chunk, skip_states


class KvCache:
    """Who holds which block. It changes the pool and the requests' tables, nothing else."""

    def __init__(self, limits: EngineLimits) -> None:
        self.pool = BlockPool(limits.num_gpu_blocks)
        self.groups = tuple(GroupRules(group, limits) for group in limits.cache_groups)
        self._numbered = tuple(enumerate(self.groups))
        self._caching = limits.enable_prefix_caching
        self._finder = PrefixFinder(limits.cache_groups, self.groups, self.pool)
        self._nothing = Hit(tokens=0, blocks=tuple([] for _ in self.groups))
        self._fresh_states: set[Hashable] = set()
        """States stored since the step began: they are only being computed."""
        states = [group for group in self.groups if group.kind == "state"]
        self._state_size = next((group.size for group in states if group.rolls), 0)
        self._has_checkpoint = bool(states) and all(group.checkpoint for group in states)
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

    def begin_step(self) -> None:
        self._fresh_states.clear()

    def find_prefix(self, request: Request) -> Hit:
        """Blocks that already hold the beginning of the request."""
        return self._finder.find(request) if self._caching else self._nothing

    def chunk(self, request: Request, tokens: int) -> int:
        """How many of the next `tokens` a step computes: fewer where a state must be kept."""
        if self._state_size == 0:
            return tokens
        return aligned_chunk(
            request, tokens, self._state_size, self._max_num_batched_tokens, self._has_checkpoint
        )

    def admit(self, request: Request, hit: Hit, computed: int, reserve_blocks: int) -> bool:
        """Gives blocks for the first `computed` tokens, if the whole sequence would fit beside the reserve.

        The whole is what scheduler_reserve_full_isl asks for: a group that gives blocks back on the way
        asks for no more than it can ever hold.
        """
        if self._fresh_states and hit.tokens and not self._are_computed(request, hit):
            return False
        tables = self._tables(hit)
        held = [block for table in tables for block in table.ids if block] if hit.tokens else []
        whole = now = 0
        for group, table in zip(self.groups, tables, strict=True):
            if group.checkpoint:
                table.saves = group.saves(table, request, hit.tokens, request.known)
            whole += group.admission_blocks(table, request.known)
            if group.checkpoint:
                table.saves = group.saves(table, request, hit.tokens, computed)
            now += group.missing(table, computed)
        needed = max(whole, now) + reserve_blocks
        if needed + self.pool.count_idle(held) > self.pool.free_blocks:
            return False
        request.tables = tables
        self.pool.hold(held)
        for number, table in enumerate(tables):
            self._take(number, table, request, computed)
        return True

    def extend(self, request: Request, settled: int, computed: int) -> bool:
        """Blocks for `computed` tokens when `settled` are done; False when there are too few free ones.

        What no later token can read is given back first, also when it does not help.
        """
        decodes = request.since is not None
        changing = []
        missing = 0
        for (number, group), table in zip(self._numbered, request.tables, strict=True):
            if decodes and computed < table.change:
                continue
            if group.gives_back:
                self._give_back(group, table, settled)
            if group.checkpoint:
                table.saves = not decodes and group.saves(table, request, request.computed, computed)
            missing += group.missing(table, computed)
            changing.append((number, table))
        if missing > self.pool.free_blocks:
            return False
        for number, table in changing:
            self._take(number, table, request, computed)
        return True

    def append_blocks(self, requests: Sequence[Request]) -> bool:
        """One more block for each, in order, if there are enough; only for tables that grow alike."""
        if len(requests) > self.pool.free_blocks:
            return False
        for request, block in zip(requests, self.pool.allocate(len(requests)), strict=True):
            request.tables[0].ids.append(block)
        return True

    def store(self, request: Request, tokens: int) -> None:
        """Lets others find the blocks that the first `tokens` fill."""
        if self._caching:
            for number, table in enumerate(request.tables):  # none while it waits
                self._store(number, table, request, tokens)

    def release(self, request: Request) -> None:
        for group, table in zip(self.groups, request.tables, strict=False):  # none while it waits
            self.pool.free([block for block in table.ids if block] if group.gives_back else table.ids)
        request.tables = ()

    def _tables(self, hit: Hit) -> tuple[BlockTable, ...]:
        """Tables that begin with what was found."""
        if not hit.tokens:
            return tuple([BlockTable() for _ in self.groups])
        return tuple(
            BlockTable(ids=found, passed=group.passed(hit.tokens), stored=len(found))
            for group, found in zip(self.groups, hit.blocks, strict=True)
        )

    def _are_computed(self, request: Request, hit: Hit) -> bool:
        """False when a state of the hit is only being computed: the request waits for the next step."""
        return not any(
            content_in(number, request, hit.tokens // group.size - 1, group.size) in self._fresh_states
            for number, group in self._numbered
            if group.kind == "state"
        )

    def _take(self, number: int, table: BlockTable, request: Request, computed: int) -> None:
        group = self.groups[number]
        length = group.length(computed)
        if length > len(table.ids) or table.saves:
            if group.rolls:
                guess_blocks = group.state_blocks - 1
                skip_states(table.ids, length - guess_blocks - 1 - table.saves, guess_blocks * table.begun)
            table.ids += self.pool.allocate(max(0, length - len(table.ids)))
        table.begun = True
        table.change = group.next_change(table, computed)
        if self._caching:
            # What a step under way will say is not known, so blocks with it cannot be found yet.
            self._store(number, table, request, min(computed, request.tokens))
            table.change = min(table.change, (table.stored + 1) * group.size)
        table.change = max(table.change, computed + 1)

    def _store(self, number: int, table: BlockTable, request: Request, tokens: int) -> None:
        group, stored = self.groups[number], tokens // self.groups[number].size
        boundaries = (request.prompt_tokens - 1, *([request.junction] if request.junction else ()))
        for position in range(table.stored, stored):
            if table.ids[position] and group.is_kept(position, boundaries):
                self.pool.store(table.ids[position], content_in(number, request, position, group.size))
                self._note_state(number, request, position)
        table.stored = max(table.stored, stored)
        # vLLM notes the state at the prompt's last whole block anew as long as the request is not beyond it.
        is_there = stored == boundaries[0] // group.size and stored and table.ids[stored - 1]
        if is_there and not table.saves and (len(self.groups) > 1 or tokens % group.size == 0):
            self._note_state(number, request, stored - 1)

    def _note_state(self, number: int, request: Request, position: int) -> None:
        if self.groups[number].kind == "state":
            self._fresh_states.add(content_in(number, request, position, self.groups[number].size))

    def _give_back(self, group: GroupRules, table: BlockTable, settled: int) -> None:
        passed = min(group.passed(settled), len(table.ids))
        if passed > table.passed:
            window = range(table.passed, passed)
            self.pool.free([table.ids[position] for position in window if table.ids[position]])
            for position in window:
                table.ids[position] = NULL_BLOCK
            table.passed = passed
