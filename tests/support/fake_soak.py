"""Soaks made by arithmetic: one user set, a few requests a minute, and signals that do as they are told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from loadtest.records import Event, RequestRecord, Sample
from loadtest.request_table import RequestTable
from loadtest.results import RunRows
from loadtest.row_file import Damage

MINUTE_NS = 60 * 10**9
Course = Callable[[float], float]
"""A value by the hour."""


@dataclass(frozen=True, kw_only=True)
class FakeSoak:
    """`hours` at 8 users; every hour ends with a pause of two minutes in which nothing runs."""

    hours: int = 4
    seed: int = 5
    ttft_s: Course = lambda hour: 0.2
    noise_ratio: float = 0.05
    requests_a_minute: int | Callable[[int], int] = 5
    """Or so many by the minute."""
    target: str = "t"
    engine: dict[str, Course] = field(default_factory=dict)
    gpu: dict[str, Course] = field(default_factory=dict)
    client: dict[str, Course] = field(default_factory=dict)
    kv_at_idle: Course = lambda hour: 0.0
    restart_at_h: float | None = None

    def rows(self) -> RunRows:
        events: list[Event] = []
        for hour in range(self.hours):
            for index, users, minute in ((2 * hour, 8, 0), (2 * hour + 1, 0, 58)):
                stage = {
                    "index": index,
                    "users": users,
                    "settle_s": 10.0,
                    "hold_s": 3480.0,
                    "has_pauses": True,
                }
                events.append(Event(at_ns=(hour * 60 + minute) * MINUTE_NS, event="stage", data=stage))
        events.append(Event(at_ns=self.hours * 60 * MINUTE_NS, event="run_end", data={"reason": "complete"}))
        return RunRows(
            requests=RequestTable.of(self._requests()),
            samples=tuple(self._samples()),
            events=tuple(events),
            damage=Damage(),
        )

    def _requests(self) -> list[RequestRecord]:
        rng = np.random.default_rng(self.seed)
        made: list[RequestRecord] = []
        for minute in range(self.hours * 60):
            if minute % 60 >= 58:
                continue
            asked = self.requests_a_minute
            for nth in range(asked if isinstance(asked, int) else asked(minute)):
                ttft_s = self.ttft_s(minute / 60) * (1 + self.noise_ratio * rng.standard_normal())
                made.append(_request(minute * MINUTE_NS + nth * 10**9, len(made), ttft_s))
        return made

    def _samples(self) -> list[Sample]:
        made: list[Sample] = []
        for half in range(self.hours * 120):
            hour, at_ns = half / 120, half * MINUTE_NS // 2 + 15 * 10**9
            is_idle = half % 120 >= 117
            started = 200.0 if self.restart_at_h is not None and hour >= self.restart_at_h else 100.0
            engine = {
                "running": 0.0 if is_idle else 8.0,
                "waiting": 0.0,
                "kv_usage_ratio": self.kv_at_idle(hour) if is_idle else 0.5,
                "process_start_time_seconds": started,
                **{name: course(hour) for name, course in self.engine.items()},
            }
            made.append(Sample(at_ns=at_ns, source="engine", target=self.target, signals=engine))
            if self.gpu:
                gpu = {name: course(hour) for name, course in self.gpu.items()}
                made.append(
                    Sample(at_ns=at_ns, source="gpu", target="gpu0", signals=gpu, labels={"device": "gpu0"})
                )
            if self.client:
                client = {name: course(hour) for name, course in self.client.items()}
                made.append(Sample(at_ns=at_ns, source="client", target="w00", signals=client))
        return made


def _request(at_ns: int, seq: int, ttft_s: float) -> RequestRecord:
    first_ns = at_ns + int(ttft_s * 1e9)
    return RequestRecord(
        worker=0,
        seq=seq,
        outcome="ok",
        endpoint="completions",
        planned_input_tokens=64,
        planned_output_tokens=11,
        intended_ns=at_ns,
        sent_ns=at_ns,
        first_token_ns=first_ns,
        last_token_ns=first_ns + 10**8,
        done_ns=first_ns + 10**8,
        input_tokens=64,
        output_tokens=11,
        chunks=11,
    )
