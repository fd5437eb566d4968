"""A request inside the simulated LMDeploy, and one forward pass of it. Both backends share them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from estimator.twin.blocks import BlockPool
from estimator.twin.request import BlockTable, Request
from estimator.units import ceil_div

Status = Literal["queued", "waiting", "ready", "running", "ended"]
"""Queued: in the API, without a request handle. Ready: chosen for the next pass, which has not begun."""


@dataclass(slots=True, kw_only=True, eq=False)
class LmdeployRequest(Request):
    """`known` and `computed` are written down each step: while prompts are read, decoding may rest."""

    tables: tuple[BlockTable, ...] = field(default_factory=lambda: (BlockTable(),))
    """One. A request that lost its place keeps its blocks until somebody needs them."""
    status: Status = "queued"
    kv_token_limit: int | None = None
    """PyTorch engine: blocks are taken for so many tokens, the end of a long prompt's chunk."""
    coming_input: int = 0
    """TurboMind: tokens that the pass before computes."""
    coming_output: int = 0
    """TurboMind: 1 when that pass samples a token too."""
    passes: int = 0
    """TurboMind: scheduled passes that are not settled."""

    @property
    def block_ids(self) -> list[int]:
        return self.tables[0].ids

    @property
    def unread_tokens(self) -> int:
        """Known tokens whose K and V are not in the cache: what a prefill would compute."""
        return self.known - self.computed


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Prompt tokens, or tokens to be computed again, of one request in a pass."""

    request: LmdeployRequest
    tokens: int
    """Computed by it, after those `computed` when it begins."""
    samples: bool
    """False when it leaves a part unread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One forward pass, decided while the one before it runs."""

    kind: Literal["read", "chunk", "decode", "mixed"]
    """Chunk: a part of one prompt too long for a pass, but not its end."""
    decoding: Sequence[LmdeployRequest] = ()
    """They compute one token each."""
    reading: tuple[Chunk, ...] = ()


class Backend(Protocol):
    """The part of LMDeploy that decides what a pass holds."""

    pool: BlockPool
    admitted: list[LmdeployRequest]
    """Given a place since the list was cleared."""
    preempted: list[LmdeployRequest]
    """Those whose place was taken since."""

    @property
    def running(self) -> Sequence[LmdeployRequest]: ...

    @property
    def waiting(self) -> Sequence[LmdeployRequest]: ...

    @property
    def size(self) -> int:
        """Requests it has a place for."""
        ...

    def accept(self, request: LmdeployRequest) -> None:
        """A new one, after all others."""
        ...

    def plan(self) -> Pass | None:
        """Decides the next pass; None when nothing can run."""
        ...

    def dispatch(self, chosen: Pass) -> None:
        """The planned pass begins."""
        ...

    def settle(self, done: Pass) -> list[LmdeployRequest]:
        """The pass is over: those that gained a token, in its order."""
        ...

    def end(self, request: LmdeployRequest) -> None:
        """A request has all its tokens, or its reader is gone."""
        ...


def missing_blocks(request: LmdeployRequest, tokens: int, block_size: int) -> int:
    """Blocks to be taken so that `tokens` have a slot."""
    return max(0, ceil_div(tokens, block_size) - len(request.block_ids))


def take_blocks(pool: BlockPool, request: LmdeployRequest, count: int) -> None:
    request.block_ids.extend(pool.allocate(count))


def give_blocks(pool: BlockPool, request: LmdeployRequest, count: int | None = None) -> None:
    """Back go the last `count`, or all. They are handed out again in the order of their table.

    Source: pytorch/paging/block_manager/base_block_manager.py PhysicalAllocator.
    """
    ids = request.block_ids
    kept = 0 if count is None else len(ids) - count
    pool.free(ids[: kept - 1 if kept else None : -1])
    del ids[kept:]
