"""A twin under its virtual clock -> the rows a real run of it would have left."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from estimator.spec import Workload
from estimator.twin.arrivals import Arrival
from estimator.twin.cost import ServerCost
from estimator.twin.front_end import FrontEnd
from estimator.twin.limits import EngineLimits
from estimator.twin.request import Request
from estimator.twin.virtual import RequestOutcome, StepSample, VirtualServer
from loadtest.records import Event, RequestRecord, Sample
from loadtest.request_table import RequestTable
from loadtest.results import RunRows
from loadtest.row_file import Damage

SECOND_NS = 1_000_000_000
STAGE_S = 30.0
SETTLE_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Client:
    """The load generator: how late it sends, how busy it is, and which share of its requests is refused."""

    lateness_s: float = 0.001
    cpu_ratio: float = 0.2
    loop_lag_s: float = 0.002
    admits: int | None = None
    """The server answers 429 at once to whoever comes beside so many; they ask again a second later."""


class WatchedServer(VirtualServer):
    """Keeps the engine's own time to first token of every request, as its histogram would."""

    def __init__(self, limits: EngineLimits, cost: ServerCost) -> None:
        super().__init__(limits, cost)
        self.front_end = _WatchedFrontEnd(cost)
        self.engine_ttft: list[tuple[float, float]] = []
        """(when, how long), seconds."""
        self._added_s: dict[str, float] = {}
        self.front_end.tell = self._first_token

    def _add(self, request_id: str, arrival: Arrival) -> None:
        super()._add(request_id, arrival)
        self._added_s[request_id] = self.now_s

    def _first_token(self, request_id: str, made_s: float) -> None:
        added_s = self._added_s.pop(request_id, None)
        if added_s is not None:
            self.engine_ttft.append((made_s, made_s - added_s))


class _WatchedFrontEnd(FrontEnd):
    def __init__(self, cost: ServerCost) -> None:
        super().__init__(cost.front_end)
        self.tell: Any = None

    def writes(self, made_s: float, emitted: Sequence[Request], of: Iterable[Request]) -> list[float]:
        asked = list(of)
        for request in asked:
            self.tell(request.request_id, made_s)
        return super().writes(made_s, emitted, asked)


@dataclass(frozen=True, kw_only=True)
class TwinRun:
    """A closed loop at each level of `users`, one after the other, each on a fresh server."""

    limits: EngineLimits
    cost: ServerCost
    workload: Workload
    users: tuple[int, ...]
    seed: int
    client: Client = field(default_factory=Client)

    def rows(self) -> RunRows:
        requests: list[RequestRecord] = []
        samples: list[Sample] = []
        events = [Event(at_ns=0, event="run_start", data={})]
        totals = _Totals()
        for index, users in enumerate(self.users):
            start_s = index * STAGE_S
            data: Any = {"index": index, "users": users, "settle_s": SETTLE_S, "hold_s": STAGE_S}
            events.append(Event(at_ns=int(start_s * SECOND_NS), event="stage", data=data))
            server = self._served(users, index)
            ours = [one for one in server.requests if one.arrival_s < STAGE_S]
            requests += [self._request(one, start_s, len(requests) + i) for i, one in enumerate(ours)]
            requests += self._refused(users, start_s, len(requests))
            samples += self._samples(server, start_s, totals)
        end_ns = int(len(self.users) * STAGE_S * SECOND_NS)
        events.append(Event(at_ns=end_ns, event="run_end", data={"reason": "plan complete"}))
        return RunRows(
            requests=RequestTable.of(requests), samples=tuple(samples), events=tuple(events), damage=Damage()
        )

    def _served(self, users: int, index: int) -> WatchedServer:
        server = WatchedServer(self.limits, self.cost)
        rng = random.Random(self.seed * 1000 + index)
        inside = min(users, self.client.admits or users)

        def ask(at_s: float) -> Iterable[Arrival]:
            if at_s < STAGE_S:
                lengths = self.workload
                yield Arrival(
                    at_s=at_s,
                    prompt_tokens=lengths.input_tokens.at(rng.random()),
                    output_tokens=lengths.output_tokens.at(rng.random()),
                )

        ramp_s = SETTLE_S / 2
        server.run([arrival for user in range(inside) for arrival in ask(ramp_s * user / inside)], ask)
        return server

    def _request(self, one: RequestOutcome, start_s: float, seq: int) -> RequestRecord:
        intended_ns = int((start_s + one.arrival_s) * SECOND_NS)
        first_ns, done_ns = (int((start_s + at_s) * SECOND_NS) for at_s in (one.first_token_s, one.finish_s))
        return RequestRecord(
            worker=0,
            seq=seq,
            outcome="ok",
            endpoint="completions",
            planned_input_tokens=one.prompt_tokens,
            planned_output_tokens=one.output_tokens,
            intended_ns=intended_ns,
            sent_ns=intended_ns + int(self.client.lateness_s * SECOND_NS),
            first_token_ns=first_ns,
            last_token_ns=done_ns,
            done_ns=done_ns,
            input_tokens=one.prompt_tokens,
            output_tokens=one.output_tokens,
            chunks=one.output_tokens,
        )

    def _refused(self, users: int, start_s: float, seq: int) -> list[RequestRecord]:
        turned_away = max(0, users - (self.client.admits or users))
        seconds = int(STAGE_S)
        made = []
        for number in range(turned_away * seconds):
            at_s = start_s + number / turned_away
            asked = RequestOutcome(
                request_id="", arrival_s=0.0, first_token_s=0.0, finish_s=0.002, prompt_tokens=1,
                output_tokens=1, preemptions=0,
            )  # fmt: skip
            refused = self._request(asked, at_s, seq + number)
            made.append(replace(refused, outcome="http_429", first_token_ns=None, last_token_ns=None))
        return made

    def _samples(self, server: WatchedServer, start_s: float, totals: _Totals) -> list[Sample]:
        steps = server.steps
        starts = [step.at_s for step in steps]
        rows: list[Sample] = []
        preempted, first_tokens = totals.preemptions, totals.first_tokens
        for second in range(int(STAGE_S)):
            at_s = second + 0.5
            at_ns = int((start_s + at_s) * SECOND_NS)
            done = bisect_right(starts, at_s)
            step = steps[done - 1] if done else None
            seen = [took_s for made_s, took_s in server.engine_ttft if made_s <= at_s]
            signals = {
                **_state(step),
                "preemptions_total": float(preempted + sum(one.preempted for one in steps[:done])),
                "ttft_seconds_count": float(first_tokens + len(seen)),
                "ttft_seconds_sum": totals.first_tokens_s + sum(seen),
            }
            client = {
                "client_cpu_ratio": self.client.cpu_ratio,
                "client_loop_lag_max_s": self.client.loop_lag_s,
            }
            rows.append(Sample(at_ns=at_ns, source="engine", target="t", signals=signals))
            rows.append(Sample(at_ns=at_ns, source="client", target="w00", signals=client))
        totals.preemptions += sum(one.preempted for one in steps)
        totals.first_tokens += len(server.engine_ttft)
        totals.first_tokens_s += sum(took_s for _, took_s in server.engine_ttft)
        return rows


@dataclass
class _Totals:
    """Counters go on from stage to stage."""

    preemptions: int = 0
    first_tokens: int = 0
    first_tokens_s: float = 0.0


def _state(step: StepSample | None) -> dict[str, float]:
    if step is None:
        return {"running": 0.0, "waiting": 0.0, "kv_usage_ratio": 0.0}
    return {
        "running": float(step.running),
        "waiting": float(step.waiting),
        "kv_usage_ratio": min(step.kv_usage, 1.0),
    }
