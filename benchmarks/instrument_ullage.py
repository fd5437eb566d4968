"""Ullage's own user with a counter of times around its connection; a locustfile for instrument.py."""

from __future__ import annotations

import json
import os
from collections import Counter
from itertools import count
from pathlib import Path
from typing import Any

from locust import events

from loadtest.conductor.hooks import install
from loadtest.conductor.ramp import ScenarioRamp
from loadtest.workers.chat_user import ChatUser
from loadtest.workers.stream import Connection, Exchange

BIN_NS = 10_000
GAPS_OF_ONE_IN = 10
"""Counting gaps is the benchmark's own work, so it is done for some of the streams."""
TURNS = count()
SEEN: dict[str, Counter[int]] = {name: Counter() for name in ("ttft", "gap", "lateness")}
OUTCOMES: Counter[str] = Counter()

install(events, engine="vllm")


class Watched(Connection):
    """Counts what the rows keep no percentile of: single gaps."""

    def exchange(
        self, request: bytes, intended_ns: int, planned_output_tokens: int, *, keeps_text: bool = False
    ) -> Exchange:
        done = super().exchange(request, intended_ns, planned_output_tokens, keeps_text=keeps_text)
        OUTCOMES[done.outcome] += 1
        if done.sent_ns is not None and done.reply.first_token_ns is not None:
            SEEN["ttft"][(done.reply.first_token_ns - done.sent_ns) // BIN_NS] += 1
            SEEN["lateness"][(done.sent_ns - max(intended_ns, done.connected_ns or 0)) // BIN_NS] += 1
            if next(TURNS) % GAPS_OF_ONE_IN == 0:
                SEEN["gap"].update(gap_ns // BIN_NS for gap_ns in done.reply.sorted_gaps_ns())
        return done


class BenchmarkUser(ChatUser):
    def on_start(self) -> None:
        super().on_start()
        self.on_stop()
        self.connection = Watched(self.desk.origin, self.script.scenario.timeouts)
        self.desk.connections.add(self.connection)
        self.connection.open()


class Ramp(ScenarioRamp):
    """As loadtest/qwen.py has it."""


@events.quitting.add_listener
def write_seen(**_: Any) -> None:
    Path(os.environ["INSTRUMENT_OUT"]).write_text(json.dumps(SEEN | {"outcomes": OUTCOMES}))
