"""The requests of one stage, folded part by part: who violated, how long they took, how many ended. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from loadtest.columns import NULL, Array, Columns, Flags
from loadtest.reporter.latency import (
    NEEDED,
    Latencies,
    breaks_a_limit,
    e2e_s,
    exact_quantiles,
    succeeded,
    tpot_s,
    ttft_s,
)
from loadtest.reporter.observation import Quantiles, Window
from loadtest.reporter.question import Question, need_of, started, together
from loadtest.reporter.stages import in_flight_mean
from loadtest.request_table import ORDER, RequestTable
from loadtest.scenario import Limits

SHARES: Final = (0.50, 0.95, 0.99)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cohort:
    """What a stage's requests showed. The cohort are those that started in the window.

    `in_flight_mean`, the two rates and `little_ratio` are of all requests alive or ended in the window.
    """

    violations: bytes
    slo_violations: int
    cancelled: int
    outcomes: Mapping[str, int]
    ttft: Quantiles | None
    tpot: Quantiles | None
    e2e: Quantiles | None
    in_flight_mean: float
    requests_per_s: float
    output_tokens_per_s: float
    little_ratio: float | None


@dataclass(slots=True, kw_only=True)
class _Judged:
    """How the requests of a window were judged, so far."""

    violations: list[bytes] = field(default_factory=list)
    slo_violations: int = 0
    cancelled: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ended:
    """Of the good requests that ended in a window: how many, their output tokens, the sum of their time."""

    done: int = 0
    output_tokens: int = 0
    spent_ns: int = 0


def judge_cohort(window: Window, limits: Limits) -> Question[Cohort]:
    """Of one window. A request we cut short is not judged, unless it had broken a limit."""
    found = yield from together(
        judged=_judged(window, limits),
        latencies=_latencies(window),
        in_flight=in_flight_mean(window),
        ended=_ended(window),
    )
    judged: _Judged = found["judged"]
    ended: _Ended = found["ended"]
    latencies: Mapping[str, Quantiles | None] = found["latencies"]
    in_flight: float = found["in_flight"]
    requests_per_s = ended.done / window.window_s
    return Cohort(
        violations=b"".join(judged.violations),
        slo_violations=judged.slo_violations,
        cancelled=judged.cancelled,
        outcomes=dict(judged.outcomes),
        ttft=latencies["ttft"],
        tpot=latencies["tpot"],
        e2e=latencies["e2e"],
        in_flight_mean=in_flight,
        requests_per_s=requests_per_s,
        output_tokens_per_s=ended.output_tokens / window.window_s,
        # throughput x mean time / mean in flight: 1 when the instrument's own figures agree
        little_ratio=requests_per_s * (ended.spent_ns / ended.done / 1e9) / in_flight
        if ended.done and in_flight
        else None,
    )


def _judged(window: Window, limits: Limits) -> Question[_Judged]:
    judged, ordered = _Judged(), _Ordered()
    need = need_of((*NEEDED, *ORDER), [window])
    while (part := (yield need)) is not None:
        judged.violations.append(ordered.before(int(part["intended_ns"][0])))
        for rows in started(part, [window]):
            broke = breaks_a_limit(rows, limits)
            counts = broke | ~rows.among("outcome", {"client_cancel"})
            ordered.add(rows, broke | ~succeeded(rows), counts)
            judged.slo_violations += int(broke.sum())
            judged.cancelled += rows.rows - int(counts.sum())
            judged.outcomes.update(_counted(rows.take(counts)))
    judged.violations.append(ordered.before(window.end_ns))
    return judged


@dataclass(slots=True)
class _Ordered:
    """Brings flags of requests into the order of a report; parts come in the order of their first intent."""

    held: list[tuple[Array, ...]] = field(default_factory=list)
    """Keys of ORDER and the flag, of those that a later part may hold neighbours of."""

    def add(self, rows: Columns, flags: Flags, counts: Flags) -> None:
        self.held.append(tuple(column[counts] for column in (*(rows[name] for name in ORDER), flags)))

    def before(self, intended_ns: int) -> bytes:
        """The flags of the requests that were intended earlier; they are let go."""
        if not self.held:
            return b""
        columns = [np.concatenate(each) for each in zip(*self.held, strict=True)]
        is_ready = columns[0] < intended_ns
        self.held = [tuple(column[~is_ready] for column in columns)]
        first, then, last, flags = (column[is_ready] for column in columns)
        return bytes(flags[np.lexsort((last, then, first))].tobytes())


def outcomes_of(requests: RequestTable) -> dict[str, int]:
    """How many requests ended in which way."""
    outcomes: Counter[str] = Counter()
    for rows in requests.columns("outcome"):
        outcomes.update(_counted(rows))
    return dict(outcomes)


def _counted(rows: Columns) -> dict[str, int]:
    return {str(outcome): count for outcome, count in rows.word_counts("outcome").items()}


def _latencies(window: Window) -> Question[dict[str, Quantiles | None]]:
    """Of the good requests that started in the window."""

    def of_part(part: Columns) -> Latencies:
        for rows in started(part, [window]):
            good = rows.only(NEEDED).take(succeeded(rows))
            yield {"ttft": ttft_s(good), "tpot": tpot_s(good), "e2e": e2e_s(good)}

    found = yield from exact_quantiles(need_of(NEEDED, [window]), of_part, SHARES)
    return {name: _quantiles(found.get(name)) for name in ("ttft", "tpot", "e2e")}


def _quantiles(values: tuple[float, ...] | None) -> Quantiles | None:
    return Quantiles(p50_s=values[0], p95_s=values[1], p99_s=values[2]) if values else None


def _ended(window: Window) -> Question[_Ended]:
    done = tokens = spent_ns = 0
    need = need_of(("outcome", "done_ns", "output_tokens"), [window])
    while (rows := (yield need)) is not None:
        done_ns = rows["done_ns"]
        counts = (window.settled_ns <= done_ns) & (done_ns < window.end_ns) & succeeded(rows)
        output_tokens = rows["output_tokens"][counts]
        done += int(np.count_nonzero(counts))
        tokens += int(output_tokens[output_tokens != NULL].sum())
        spent_ns += int((done_ns - rows["intended_ns"])[counts].sum())
    return _Ended(done=done, output_tokens=tokens, spent_ns=spent_ns)
