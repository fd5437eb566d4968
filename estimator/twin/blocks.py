"""The paged pool of KV cache blocks: ids out, ids back, block 0 never.

Source of the order: vLLM 0.32 v1/core/block_pool.py without prefix caching, where the block freed last is
used first. Its null block (id 0) stands for "no block here" in block tables, so a pool of N hands out N - 1.
"""

from __future__ import annotations

from collections.abc import Iterable

from estimator.spec import SpecError

NULL_BLOCK = 0


class BlockPool:
    """Fixed number of blocks; used_blocks + free_blocks == usable_blocks after every call."""

    __slots__ = ("_free", "_in_use", "usable_blocks")

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 2:
            raise SpecError(f"num_gpu_blocks must be at least 2 (one is the null block), got {num_blocks}")
        self.usable_blocks = num_blocks - 1
        self._free = list(range(num_blocks - 1, NULL_BLOCK, -1))  # a stack: lowest id on top
        self._in_use = bytearray(num_blocks)

    @property
    def free_blocks(self) -> int:
        return len(self._free)

    @property
    def used_blocks(self) -> int:
        return sum(self._in_use)

    @property
    def usage(self) -> float:
        """Share of the usable blocks in use, 0 to 1, as vllm:kv_cache_usage_perc shows it."""
        return 1.0 - len(self._free) / self.usable_blocks

    def allocate(self, count: int) -> list[int]:
        """Takes `count` ids, the last freed first. Raises ValueError when fewer are free."""
        if count > len(self._free):
            raise ValueError(f"{count} blocks asked for, {len(self._free)} free")
        blocks = [self._free.pop() for _ in range(count)]
        for block in blocks:
            self._in_use[block] = 1
        return blocks

    def free(self, blocks: Iterable[int]) -> None:
        """Gives ids back. Raises ValueError for one that is not in use (the null block never is)."""
        for block in blocks:
            if not self._in_use[block]:
                raise ValueError(f"block {block} is not in use")
            self._in_use[block] = 0
            self._free.append(block)
