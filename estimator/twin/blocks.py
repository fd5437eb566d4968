"""The paged pool of KV cache blocks: ids out, ids back, block 0 never; full blocks can be found by content.

Source: vLLM 0.32 v1/core/block_pool.py. Its free queue is a stack of blank blocks, where the one freed last
is used first, followed by the cached ones, where the one freed first is overwritten first (LRU): a free
block with content counts as free. Its null block (id 0) stands for "no block here" in block tables, so a
pool of N hands out N - 1.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from typing import Final

from estimator.spec import SpecError

NULL_BLOCK: Final = 0


class BlockPool:
    """Fixed number of blocks; used_blocks + free_blocks == usable_blocks after every call."""

    __slots__ = ("_blank", "_content", "_idle", "_in_use", "_more_holders", "_with_content", "usable_blocks")

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 2:
            raise SpecError(f"num_gpu_blocks must be at least 2 (one is the null block), got {num_blocks}")
        self.usable_blocks = num_blocks - 1
        self._blank = list(range(num_blocks - 1, NULL_BLOCK, -1))  # a stack: lowest id on top
        self._idle: OrderedDict[int, None] = OrderedDict()  # free, with content: the first goes first
        self._in_use: set[int] = set()
        self._more_holders: dict[int, int] = {}  # of blocks that several requests share: all but one
        self._content: dict[int, Hashable] = {}
        self._with_content: dict[Hashable, dict[int, None]] = {}  # equal content may be computed twice

    @property
    def free_blocks(self) -> int:
        return len(self._blank) + len(self._idle)

    @property
    def used_blocks(self) -> int:
        return len(self._in_use)

    @property
    def usage(self) -> float:
        """Share of the usable blocks in use, 0 to 1, as vllm:kv_cache_usage_perc shows it."""
        return 1.0 - self.free_blocks / self.usable_blocks

    def allocate(self, count: int) -> list[int]:
        """Takes `count` ids, blank ones first. Raises ValueError when fewer are free."""
        blank = self._blank
        if count > len(blank):
            if count > self.free_blocks:
                raise ValueError(f"{count} blocks asked for, {self.free_blocks} free")
            blank[:0] = reversed([self._forget() for _ in range(count - len(blank))])
        rest = len(blank) - count
        blocks = blank[rest:]
        blocks.reverse()
        del blank[rest:]
        self._in_use.update(blocks)
        return blocks

    def free(self, blocks: Sequence[int]) -> None:
        """Gives up one hold of each, in the order of a block table.

        Raises ValueError for one that is not in use (the null block never is).
        """
        if not self._in_use.issuperset(blocks):
            raise ValueError(f"block {min({*blocks} - self._in_use)} is not in use")
        if self._more_holders:
            blocks = [block for block in blocks if not self._still_held(block)]
        self._in_use.difference_update(blocks)
        if not self._content:
            self._blank += blocks
            return
        self._blank += [block for block in blocks if block not in self._content]
        # The end of a sequence is of less use to others than its beginning, so it is overwritten first.
        self._idle.update((block, None) for block in reversed(blocks) if block in self._content)

    def store(self, block: int, content: Hashable) -> None:
        """From now on `find(content)` may answer with this block, until it is handed out again."""
        self._content[block] = content
        self._with_content.setdefault(content, {})[block] = None

    def find(self, content: Hashable) -> int | None:
        """The block stored first of those with this content."""
        return next(iter(self._with_content.get(content, ())), None)

    def hold(self, blocks: Iterable[int]) -> None:
        """One more holder for each: found blocks, in use or not."""
        for block in blocks:
            if block in self._in_use:
                self._more_holders[block] = self._more_holders.get(block, 0) + 1
            else:
                del self._idle[block]
                self._in_use.add(block)

    def count_idle(self, blocks: Iterable[int]) -> int:
        """How many of `blocks` nobody holds: they count as free until `hold`."""
        return sum(block in self._idle for block in blocks)

    def _still_held(self, block: int) -> bool:
        """Takes one holder away; False when it was the last."""
        more = self._more_holders.pop(block, 0)
        if more > 1:
            self._more_holders[block] = more - 1
        return more > 0

    def _forget(self) -> int:
        """The idle block whose turn it is, its content gone."""
        block, _ = self._idle.popitem(last=False)
        content = self._content.pop(block)
        del self._with_content[content][block]
        if not self._with_content[content]:
            del self._with_content[content]
        return block
