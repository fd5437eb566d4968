"""What the textbook and the memory ledger said before a run, kept with it: the waterfall's first figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class TextbookFacts:
    """Bytes over all GPUs of one engine; known where a person named the model and the GPU."""

    gpu: str
    gpus: int
    gpu_memory_bytes: int
    """What CUDA reports."""
    weights_bytes: int
    """Parameters x bytes of one."""
    overhead_bytes: int
    growing_bytes: int
    """KV cache with attention heads and activations of one request at max_model_len."""
    usable_blocks: int
    """KV blocks that the ledger leaves."""
    block_bytes: int
    """One of them, as the engine stores it."""
    taken_bytes: Mapping[str, int]
    """The ledger's likely lines beside the KV cache, by name."""

    @property
    def free_bytes(self) -> int:
        """What the textbook leaves for requests."""
        return max(0, self.gpu_memory_bytes - self.weights_bytes - self.overhead_bytes)
