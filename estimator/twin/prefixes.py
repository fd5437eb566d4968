"""The longest beginning of a request that every cache group still has blocks for.

Source: vLLM 0.32 v1/core/kv_cache_coordinator.py find_longest_cache_hit and its namesakes in
single_type_kv_cache_manager.py, for groups of one block size and without EAGLE.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from estimator.kv_group import KvGroup
from estimator.twin.blocks import NULL_BLOCK, BlockPool
from estimator.twin.group_rules import GroupRules
from estimator.twin.request import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """`tokens` that need not be computed; their blocks for each group, NULL_BLOCK where none is needed."""

    tokens: int
    blocks: tuple[list[int], ...]
    junction: int = 0
    """Tokens of a longer beginning that only some groups have: worth keeping for the next that shares it."""


def content_in(group: int, request: Request, position: int, block_size: int) -> Hashable:
    """What names a block's content in the pool: each group keeps something else of the same tokens."""
    return group, request.content(position, block_size)


class PrefixFinder:
    """Looks a request up in all groups; those that keep the same are looked up together."""

    def __init__(self, kinds: Sequence[KvGroup], groups: Sequence[GroupRules], pool: BlockPool) -> None:
        families: dict[tuple[object, ...], list[int]] = {}
        for number, group in enumerate(kinds):
            same = (group.kind, group.reach_tokens, group.state_blocks, group.page_bytes)
            families.setdefault(same, []).append(number)
        # Full attention first: it bounds what the others need to look for.
        self._families = sorted(families.values(), key=lambda numbers: groups[numbers[0]].kind != "full")
        self._groups = groups
        self._pool = pool
        self._size = groups[0].size

    def find(self, request: Request) -> Hit:
        """The last token is always computed anew: it yields the next."""
        first = self._groups[self._families[0][0]]
        settles_at_once = len(self._groups) == 1 or (len(self._families) == 2 and first.kind == "full")
        found: dict[int, list[int]] = {}
        most, longest = request.tokens - 1, 0
        while True:
            tokens = most
            for family in self._families:
                if self._groups[family[0]].kind == "full" and family[0] in found:
                    tokens = min(tokens, len(found[family[0]]) * self._size)
                    continue
                found.update(zip(family, self._look(request, family, tokens), strict=True))
                tokens = len(found[family[0]]) * self._size
                longest = max(longest, tokens)
            is_agreed = tokens >= most
            most = tokens
            if is_agreed or settles_at_once:
                break
        blocks = tuple([found[number][: most // self._size] for number in range(len(self._groups))])
        return Hit(tokens=most, blocks=blocks, junction=longest if longest > most else 0)

    def _look(self, request: Request, family: list[int], tokens: int) -> list[list[int]]:
        """The blocks of the longest beginning of at most `tokens` that all groups of a family have."""
        rules, positions = self._groups[family[0]], tokens // self._size
        if rules.kind in ("window", "state"):
            columns = self._from_right(request, family, rules.tail_blocks, positions)
        else:
            unseen = rules.passed(tokens) if rules.kind == "chunk" else 0
            columns = self._from_left(request, family, unseen, positions)
        return [list(blocks) for blocks in zip(*columns, strict=True)] if columns else [[] for _ in family]

    def _from_left(
        self, request: Request, family: list[int], unseen: int, positions: int
    ) -> list[tuple[int, ...]]:
        """Without a gap from `unseen` on; what lies before cannot be read any more."""
        columns = [(NULL_BLOCK,) * len(family)] * unseen
        for position in range(unseen, positions):
            column = self._cached(request, family, position)
            if column is None:
                break
            columns.append(column)
        return columns

    def _from_right(
        self, request: Request, family: list[int], tail: int, positions: int
    ) -> list[tuple[int, ...]]:
        """The last `tail` blocks in a row; fewer will do at the very beginning."""
        run: list[tuple[int, ...]] = []
        for position in reversed(range(positions)):
            column = self._cached(request, family, position)
            run = [] if column is None else [column, *run]
            if column is not None and len(run) >= tail:
                return [(NULL_BLOCK,) * len(family)] * position + run
        return run

    def _cached(self, request: Request, family: list[int], position: int) -> tuple[int, ...] | None:
        blocks = []
        for number in family:
            block = self._pool.find(content_in(number, request, position, self._size))
            if block is None:
                return None
            blocks.append(block)
        return tuple(blocks)
