"""Drives the twin's LMDeploy by a script of events and writes down what can be seen after each pass."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from typing import Any

from estimator.twin.lmdeploy_engine import LmdeployEngine
from estimator.twin.lmdeploy_limits import LmdeployLimits

Add = tuple[int, int, int]
"""Number, prompt tokens, output tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Events:
    """Before a pass begins, and while it runs."""

    adds: tuple[Add, ...] = ()
    late_adds: tuple[Add, ...] = ()
    aborts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One pass as LMDeploy and the twin can both be asked about it."""

    batch: tuple[int, ...]
    prefill_tokens: int
    decoding: int
    running: tuple[int, ...]
    waiting: tuple[int, ...]
    """In order of eviction, then those chosen for the next pass."""
    tables: int
    """`digest` of everybody's block ids."""
    emitted: tuple[int, ...]
    """Who gained a token."""


def digest(tables: dict[int, list[int]]) -> int:
    """One number for the blocks that each request holds, in order."""
    held = sorted((number, blocks) for number, blocks in tables.items() if blocks)
    return zlib.crc32(json.dumps(held).encode())


class Twin:
    """The twin under a script."""

    def __init__(self, limits: LmdeployLimits) -> None:
        self.engine = LmdeployEngine(limits)

    @property
    def in_flight(self) -> list[int]:
        return sorted(int(r.request_id) for r in (*self.engine.running, *self.engine.waiting))

    def tables(self) -> dict[int, list[int]]:
        requests = (*self.engine.running, *self.engine.waiting)
        return {int(request.request_id): request.blocks for request in requests}

    def turn(self, events: Events) -> Seen:
        engine = self.engine
        self._add(events.adds)
        step = engine.step()
        running = sorted(int(request.request_id) for request in engine.running)
        waiting = [int(request.request_id) for request in engine.waiting]
        tables = digest(self.tables())
        self._add(events.late_adds)
        for number in events.aborts:
            engine.abort(str(number))
        outcome = engine.settle(step)
        return Seen(
            batch=tuple(int(request.request_id) for request in step.batch),
            prefill_tokens=step.prefill_tokens,
            decoding=step.decoding,
            running=tuple(running),
            waiting=tuple(waiting),
            tables=tables,
            emitted=tuple(sorted(int(request.request_id) for request in outcome.emitted)),
        )

    def _add(self, adds: tuple[Add, ...]) -> None:
        for number, prompt_tokens, output_tokens in adds:
            self.engine.add(str(number), prompt_tokens, output_tokens)


def packed(events: Events, seen: Seen) -> list[Any]:
    """As short JSON."""
    return [
        [events.adds, events.late_adds, events.aborts],
        [
            seen.batch,
            seen.prefill_tokens,
            seen.decoding,
            seen.running,
            seen.waiting,
            seen.tables,
            seen.emitted,
        ],
    ]


def unpacked(row: list[Any]) -> tuple[Events, Seen]:
    (adds, late_adds, aborts), (batch, prefill_tokens, decoding, running, waiting, tables, emitted) = row
    events = Events(
        adds=tuple((number, prompt, output) for number, prompt, output in adds),
        late_adds=tuple((number, prompt, output) for number, prompt, output in late_adds),
        aborts=tuple(aborts),
    )
    seen = Seen(
        batch=tuple(batch),
        prefill_tokens=prefill_tokens,
        decoding=decoding,
        running=tuple(running),
        waiting=tuple(waiting),
        tables=tables,
        emitted=tuple(emitted),
    )
    return events, seen
