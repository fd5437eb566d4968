"""One front end over one or several engines: whom it lets in, and which data-parallel rank gets whom.

Sources: vLLM 0.32 v1/engine/async_llm.py check_admission; v1/engine/core_client.py DPLBAsyncMPClient and
v1/engine/coordinator.py for the choice. Each rank has a scheduler and a pool of its own. Not modelled: the
common steps of the ranks of a mixture of experts, several API servers.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from estimator.twin.realtime import EngineLoop, Ticket
from estimator.twin.refusals import AskError
from estimator.twin.scheduler import Scheduler
from estimator.twin.speech import Speech
from estimator.twin.telemetry import Telemetry

COUNTS_EVERY_S: Final = 0.1
"""How often the coordinator tells the front end how full the ranks are."""
FULL_QUEUE: Final = (
    "The engine is currently busy and cannot accept new requests. Please try again later or on a different "
    "instance."
)
FULL_PREFILL: Final = (
    "The engine has reached its prefill token backlog limit. Please try again later or on a different "
    "instance."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueLimits:
    """What the front end lets in at most, over all ranks; None: everything."""

    max_num_queued_reqs: int | None = None
    """Unfinished requests, those that run included."""
    max_num_queued_tokens: int | None = None
    """Prompt tokens of the requests without a first token; a limit that is reached lets nobody in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """One engine, what is known about it, and its clock."""

    engine: Scheduler
    telemetry: Telemetry
    loop: EngineLoop


@dataclass(slots=True)
class _Counts:
    """How full the front end believes a rank to be."""

    waiting: int = 0
    running: int = 0
    kv_usage: float = 0.0


class Gate:
    """Takes requests in and out; `rejections` counts those it refuses, by the limit they met."""

    def __init__(self, ranks: Sequence[Rank], limits: QueueLimits, rejections: Counter[str]) -> None:
        self._ranks = tuple(ranks)
        self._limits = limits
        self._rejections = rejections
        self._counts = [_Counts() for _ in self._ranks]
        self._next = 0
        """The rank that wins a tie; it goes round, so that the first is not preferred."""
        self._home: dict[Ticket, EngineLoop] = {}

    @property
    def under_way(self) -> int:
        """Requests let in and not withdrawn yet: their answers are still being written."""
        return len(self._home)

    def check_admission(self) -> None:
        """Raises AskError, 503, for one request more than a limit allows."""
        limits, loops = self._limits, [rank.loop for rank in self._ranks]
        most = limits.max_num_queued_reqs
        if most is not None and sum(loop.in_flight for loop in loops) + 1 > most:
            raise self._refusal("max_num_queued_reqs", FULL_QUEUE)
        most = limits.max_num_queued_tokens
        if most is not None and sum(loop.prefilling_tokens for loop in loops) >= most:
            raise self._refusal("max_num_queued_tokens", FULL_PREFILL)

    def check_rank(self, rank: int | None) -> None:
        """Raises AskError for a rank that a client names and nobody has."""
        if rank is not None and not 0 <= rank < len(self._ranks):
            said = f"data_parallel_rank {rank} is out of range [0, {len(self._ranks)})."
            raise AskError(said, param=None)

    def submit(
        self,
        request_id: str,
        speech: Speech,
        on_tokens: Callable[[], None],
        *,
        max_tokens: int = 0,
        rank: int | None = None,
    ) -> Ticket:
        """Queues a request on `rank`, or else on the emptiest.

        Raises AskError where it is not let in, SpecError when it could never finish.
        """
        self.check_admission()
        chosen = self._emptiest() if rank is None else rank
        loop = self._ranks[chosen].loop
        ticket = loop.submit(request_id, speech, on_tokens, max_tokens=max_tokens)
        self._home[ticket] = loop
        return ticket

    def withdraw(self, ticket: Ticket) -> None:
        """Its answer is over, or its reader gone."""
        self._home.pop(ticket).withdraw(ticket)

    async def watch(self) -> None:
        """Keeps the counts of the ranks as fresh as the coordinator does; cancel it to stop."""
        while True:
            await asyncio.sleep(COUNTS_EVERY_S)
            self.look()

    def look(self) -> None:
        """Takes the counts of all ranks as they are."""
        self._counts = [
            _Counts(len(rank.engine.waiting), len(rank.engine.running), rank.engine.pool.usage)
            for rank in self._ranks
        ]

    def _refusal(self, limit: str, said: str) -> AskError:
        self._rejections[limit] += 1
        return AskError(said, param=None, status=503, kind="Service Unavailable")

    def _emptiest(self) -> int:
        order = [(self._next + turn) % len(self._ranks) for turn in range(len(self._ranks))]
        chosen = min(order, key=self._load)
        self._counts[chosen].waiting += 1  # until the next look
        self._next = order[1 % len(order)]
        return chosen

    def _load(self, rank: int) -> float:
        """A queue before a full cache drains slowly, so it weighs more."""
        counts = self._counts[rank]
        load = max(self._ranks[rank].loop.in_flight, counts.waiting + counts.running)
        return load + counts.waiting * 6.0 * max(0.0, counts.kv_usage - 0.5)
