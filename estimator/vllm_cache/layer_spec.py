"""What vLLM 0.32 tells its cache manager of one layer: the kind of its blocks and their size on one rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from estimator.units import ceil_div

SpecKind = Literal["full", "latent", "window", "latent_window", "chunk", "state", "cross"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSpec:
    """One cache of one layer on one rank. Specs that are equal share a block table.

    heads: slots of a token; slot_bytes: of one head of one token (of the whole state). reach_tokens: window
    or chunk. The page is a whole multiple of page_multiple_bytes and at least page_padded_bytes.
    """

    kind: SpecKind
    block_size: int
    heads: int
    slot_bytes: int
    stored: str
    """What tells apart specs of the same size: head sizes and format."""
    tokens_per_slot: int = 1
    reach_tokens: int = 0
    state_blocks: int = 0
    rolls: bool = False
    checkpoint: bool = False
    page_padded_bytes: int = 0
    page_multiple_bytes: int = 1

    @property
    def content_bytes(self) -> int:
        """Bytes of a block, without padding."""
        if self.kind == "state":
            return self.slot_bytes
        return self.heads * (self.block_size // self.tokens_per_slot) * self.slot_bytes

    @property
    def page_bytes(self) -> int:
        whole_bytes = ceil_div(self.content_bytes, self.page_multiple_bytes) * self.page_multiple_bytes
        return max(self.page_padded_bytes, whole_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedSpec:
    """A LayerSpec and the pipeline stage that holds it."""

    stage: int
    spec: LayerSpec
