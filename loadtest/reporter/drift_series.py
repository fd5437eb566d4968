"""Rows of a soak -> one median a minute for everything that may drift, in bounded memory. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from statistics import median
from typing import Final

import numpy as np

from loadtest.columns import NULL, Columns, Flags, Ints, joined
from loadtest.records import Event, Sample, SampleSource
from loadtest.reporter.latency import NEEDED, succeeded, tpot_s, ttft_s
from loadtest.reporter.looks import looks_in
from loadtest.reporter.observation import Window
from loadtest.reporter.stages import windows
from loadtest.reporter.turns import takes_turns
from loadtest.request_table import RequestTable

MINUTE_NS: Final = 60_000_000_000
IDLE_SIGNALS: Final = frozenset({"running", "waiting", "kv_usage_ratio"})
Minutes = Mapping[int, float]
"""Medians by the minute of the soak, from 0; a minute that nothing was seen in is not there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The time of a soak at its full load: the stages of the most users, without their settling seconds."""

    stages: tuple[Window, ...]

    @property
    def start_ns(self) -> int:
        return self.stages[0].settled_ns

    @property
    def end_ns(self) -> int:
        return self.stages[-1].end_ns

    @property
    def hours(self) -> float:
        return (self.end_ns - self.start_ns) / 3.6e12

    def holds(self, at_ns: Ints) -> Flags:
        """Which of these moments are at full load: hourly pauses are not."""
        inside = np.zeros(len(at_ns), np.bool_)
        for stage in self.stages:
            inside |= (stage.settled_ns <= at_ns) & (at_ns < stage.end_ns)
        return inside

    def held_s(self, minute: int) -> float:
        """How much of a minute was at full load."""
        start_ns = self.start_ns + minute * MINUTE_NS
        spans_ns = (
            min(stage.end_ns, start_ns + MINUTE_NS) - max(stage.settled_ns, start_ns) for stage in self.stages
        )
        return sum(max(span_ns, 0) for span_ns in spans_ns) / 1e9

    def minute(self, at_ns: Ints) -> Ints:
        return np.asarray((at_ns - self.start_ns) // MINUTE_NS)


def load_of(events: Sequence[Event]) -> Load | None:
    """None when no stage lasted beyond its settling time."""
    lasting = [window for window in windows(events) if window.window_s > 0 and window.users > 0]
    most = max((window.users for window in lasting), default=0)
    return Load(stages=tuple(w for w in lasting if w.users == most)) if lasting else None


def latency_minutes(requests: RequestTable, load: Load) -> dict[str, Minutes]:
    """TTFT and TPOT of the good requests, seconds, by the minute they were intended in."""
    found: dict[str, dict[int, float]] = {"ttft": {}, "tpot": {}}
    held: Columns | None = None
    for rows in requests.started_in_order(NEEDED, load.start_ns, load.end_ns):
        good = rows.take(succeeded(rows) & load.holds(rows["intended_ns"]))
        if not good.rows:
            continue
        whole = good if held is None else joined([held, good])
        minutes = load.minute(whole["intended_ns"])
        unfinished = minutes == minutes[-1]  # the next part may go on with it
        _add_medians(whole.take(~unfinished), load, found)
        held = whole.take(unfinished)
    if held is not None:
        _add_medians(held, load, found)
    return dict(found)


def _add_medians(rows: Columns, load: Load, found: Mapping[str, dict[int, float]]) -> None:
    minutes = load.minute(rows["intended_ns"])
    for name, values in (("ttft", ttft_s(rows)), ("tpot", tpot_s(rows))):
        known = ~np.isnan(values)
        for minute in np.unique(minutes[known]).tolist():
            found[name][minute] = float(np.median(values[known & (minutes == minute)]))


def work_minutes(requests: RequestTable, load: Load) -> dict[str, Minutes]:
    """Output tokens a second, and the share of requests that failed, by the minute they ended in."""
    minutes = math.ceil((load.end_ns - load.start_ns) / MINUTE_NS)
    ended, failed, tokens = (np.zeros(minutes) for _ in range(3))
    for part in requests.columns("outcome", "output_tokens", "done_ns"):
        rows = part.take(load.holds(part["done_ns"]) & ~part.among("outcome", {"client_cancel"}))
        minute, output_tokens = load.minute(rows["done_ns"]), rows["output_tokens"]
        known = np.where(output_tokens == NULL, 0, output_tokens)
        ended += np.bincount(minute, minlength=minutes)
        failed += np.bincount(minute, weights=~succeeded(rows), minlength=minutes)
        tokens += np.bincount(minute, weights=known, minlength=minutes)
    seen = np.flatnonzero(ended).tolist()
    return {
        "errors": {minute: float(failed[minute] / ended[minute]) for minute in seen},
        "throughput": {minute: float(tokens[minute] / load.held_s(minute)) for minute in seen},
    }


def signal_minutes(
    samples: Sequence[Sample], source: SampleSource, signal: str, load: Load
) -> dict[str, Minutes]:
    """One signal at full load, by what was looked at: a server, a device, a worker."""
    return {
        name: {minute: median(values) for minute, values in minutes.items()}
        for name, minutes in _seen(samples, source, signal, load).items()
    }


def counter_minutes(
    samples: Sequence[Sample], source: SampleSource, signal: str, load: Load
) -> dict[str, Minutes]:
    """How much a counter rose in each minute at full load; one that fell began again from 0."""
    return {
        name: {
            minute: sum(later - earlier if later >= earlier else later for earlier, later in pairwise(values))
            for minute, values in minutes.items()
        }
        for name, minutes in _seen(samples, source, signal, load).items()
    }


def _seen(
    samples: Sequence[Sample], source: SampleSource, signal: str, load: Load
) -> dict[str, dict[int, list[float]]]:
    seen: dict[str, dict[int, list[float]]] = {}
    for sample in looks_in(samples, load.stages):
        if sample.source != source or signal not in sample.signals:
            continue
        minute = (sample.at_ns - load.start_ns) // MINUTE_NS
        seen.setdefault(where_of(sample), {}).setdefault(minute, []).append(sample.signals[signal])
    return seen


def where_of(sample: Sample) -> str:
    """The target and its labels, as one name."""
    return " ".join([sample.target, *(value for _, value in sorted(sample.labels.items()))])


@dataclass(frozen=True, slots=True, kw_only=True)
class IdlePoint:
    """The least KV usage of one spell in which the server neither ran nor queued a request."""

    at_ns: int
    where: str
    kv_usage_ratio: float


def idle_points(samples: Iterable[Sample], start_ns: int) -> list[IdlePoint]:
    """Spells after `start_ns`. The least, because some servers refresh their gauge only every ten seconds."""
    looks = sorted(
        (s for s in samples if s.source == "engine" and s.signals.keys() >= IDLE_SIGNALS), key=where_of
    )
    points: list[IdlePoint] = []
    for (_, is_idle), spell in groupby(looks, key=lambda s: (where_of(s), _is_idle(s))):
        if is_idle and (after := [sample for sample in spell if sample.at_ns >= start_ns]):
            usage = min(sample.signals["kv_usage_ratio"] for sample in after)
            points.append(IdlePoint(at_ns=after[-1].at_ns, where=where_of(after[-1]), kv_usage_ratio=usage))
    return points


def _is_idle(sample: Sample) -> bool:
    return sample.signals["running"] + sample.signals["waiting"] == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    """A server process was another one at `at_ns` than before."""

    at_ns: int
    where: str


def restarts(samples: Iterable[Sample]) -> list[Restart]:
    """By process_start_time_seconds of each target."""
    by_target: dict[str, list[Sample]] = {}
    for sample in samples:
        if sample.source == "engine" and "process_start_time_seconds" in sample.signals:
            by_target.setdefault(where_of(sample), []).append(sample)
    return [
        Restart(at_ns=after.at_ns, where=name)
        for name, looks in by_target.items()
        if not takes_turns(looks)
        for before, after in pairwise(looks)
        if before.signals["process_start_time_seconds"] != after.signals["process_start_time_seconds"]
    ]
