"""What passes in and out of the simulated engine: requests, steps, outcomes, counters.

A request in plain decode gains one token every step, so its progress is not written down: it follows from
the engine's clock of steps. A step then costs what happens in it, not how many requests it carries.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Literal

FinishReason = Literal["length", "abort"]
"""The twin's models never stop by themselves: every request is sent as if with ignore_eos."""

Prefix = tuple[tuple[Hashable, int], ...]
"""(name, tokens) pairs, shortest first: requests that give the same name begin with the same tokens, so
many of them. Tokens beyond the prompt say that the answer is shared too, as by the next turn of a talk."""


@dataclass(slots=True)
class StepClock:
    """Steps started and settled so far; they differ by the steps under way."""

    started: int = 0
    settled: int = 0


@dataclass(slots=True)
class BlockTable:
    """A request's blocks in one cache group, by position; NULL_BLOCK where nothing is kept (any more)."""

    ids: list[int] = field(default_factory=list)
    passed: int = 0
    """Positions at the front given back for good."""
    stored: int = 0
    """Positions at the front whose content others may find."""
    change: int = 0
    """Computed tokens at which it changes next while its request decodes."""
    begun: bool = False
    """It holds more than what was found in the prefix cache."""
    saves: bool = False
    """Its next step takes one more block, for the checkpoint of a state."""


@dataclass(slots=True, kw_only=True, eq=False)
class Request:
    """One request inside the engine; others may read it, only the engine writes it."""

    request_id: str
    prompt_tokens: int
    tokens_max: int
    """Prompt and output together when it ends: max_tokens or max_model_len, whichever comes first."""
    clock: StepClock
    arrival: int = 0
    """Its number in order of arrival."""
    priority: int = 0
    """The lower, the sooner."""
    prefix: Prefix = ()
    tables: tuple[BlockTable, ...] = ()
    """One for each cache group while it runs."""
    cached_tokens: int = 0
    """Tokens found in the prefix cache when it was last admitted."""
    junction: int = 0
    """Tokens it shares with others though not all groups had them when it was last looked up."""
    preemptions: int = 0
    ended: bool = False
    place: int = 0
    """Its number in order of admission while it runs, else 0."""
    known: int
    """Prompt and output tokens, as after step `since` when it decodes."""
    computed: int = 0
    """Tokens whose K and V are in the cache, as after step `since` when it decodes."""
    since: int | None = None
    """It decodes since this step, which ended its prompt; None: it waits or reads."""
    chunk: int = 0
    """Tokens it read in step `chunk_step`, the last in which it read."""
    chunk_step: int = 0

    @property
    def tokens(self) -> int:
        """Prompt and output known so far."""
        return self.known if self.since is None else self.known + max(-1, self.clock.settled - self.since)

    @property
    def computed_tokens(self) -> int:
        """Tokens whose K and V are in the cache; 0 again after a preemption."""
        return self.computed if self.since is None else self.computed + self.clock.started - self.since

    @property
    def settled_tokens(self) -> int:
        """Computed tokens of settled steps; a step under way still reads what these could see."""
        if self.chunk_step > self.clock.settled:
            return self.computed - self.chunk
        return self.computed if self.since is None else self.computed + self.clock.settled - self.since

    @property
    def output_tokens(self) -> int:
        return self.tokens - self.prompt_tokens

    @property
    def blocks(self) -> list[int]:
        """The block ids it holds, group by group."""
        return [block for table in self.tables for block in table.ids if block]

    def content(self, position: int, block_size: int) -> Hashable:
        """What names the tokens of its block at `position`, equal for requests that share them."""
        shared = bisect_left(self.prefix, (position + 1) * block_size, key=itemgetter(1))
        if shared < len(self.prefix):
            return ("prefix", self.prefix[shared][0], position)
        return (self.arrival, position)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What the engine put into one forward pass; its tokens exist only after `Engine.settle`.

    `batch` is empty, and the step takes no time, when all that runs waits for a step under way.
    """

    batch: tuple[Request, ...]
    admitted: tuple[Request, ...]
    preempted: tuple[Request, ...]
    prefill_tokens: int
    decoding: int
    """Running sequences that compute one token."""
    context_tokens: int
    """Cached tokens attention reads in this step, over the batch."""
    attended_pairs: int = 0
    """Prompt tokens of the step times the tokens each of them attends to, on average half its own chunk."""
    first: tuple[Request, ...] = ()
    """Those of `batch` whose first output token it yields."""
    silent: frozenset[Request] = frozenset()
    """Those of `batch` that gain no token: they have more to read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a settled step yielded: one new token for each of `emitted`."""

    emitted: tuple[Request, ...]
    first: tuple[Request, ...]
    """Those of `emitted` whose first output token this is."""
    finished: tuple[Request, ...]


@dataclass(slots=True, kw_only=True)
class Stats:
    """Cumulative counters since the start. A prompt counts once, with its first token, as in vLLM."""

    preemptions: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    prefix_cache_queries: int = 0
    """Tokens looked up in the prefix cache at first admissions."""
    prefix_cache_hits: int = 0
    """Those of them found there."""
    finished: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True, kw_only=True)
class Turn:
    """What one step has given away so far."""

    budget_tokens: int
    chunks: dict[Request, int] = field(default_factory=dict)
    """Tokens of those that read, also none; each that decodes gets one without being listed."""
    preempted: list[Request] = field(default_factory=list)

    def left_tokens(self, position: int) -> int:
        """What is left for the running at `position`, all before it served."""
        return self.budget_tokens - sum(self.chunks.values()) - (position - len(self.chunks))
