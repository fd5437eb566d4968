"""How the run at hand stands, for whoever looks while it goes on: the exporter and Locust's page.

Keeps the last run until the next one begins, so that its limits outlive it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from estimator.capacity import Prediction
from loadtest.collector.exporter import RunFigures
from loadtest.conductor.live.news import News, added_up
from loadtest.conductor.live.so_far import Level, signals_added
from loadtest.conductor.load_run import LoadRun
from loadtest.live_counts import LiveCounts
from loadtest.records import Sample
from loadtest.row_tail import RowTail
from loadtest.run_folder import PlannedStage

if TYPE_CHECKING:  # numpy costs a tenth of a second, which no load waits for
    from loadtest.reporter.verdict import Verdict

NewsDesk = Callable[[], Sequence[News]]


class Standing:
    """One where the load is decided. `look` is called about once a second, and whenever somebody asks."""

    def __init__(self, news: NewsDesk, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        self._news = news
        self._clock = clock
        self.run: LoadRun | None = None
        self._reset()

    def _reset(self) -> None:
        self.verdict: Verdict | None = None
        self.levels: list[Level] = []
        self.seen: Sample | None = None
        """The last look at the server that found it."""
        self.looks_in_vain = 0
        self._tail: RowTail | None = None

    def begins(self, run: LoadRun) -> None:
        self._reset()
        self.run = run
        self._tail = RowTail(run.run.folder.collector_samples())

    def stage_begins(self, stage: PlannedStage, at_ns: int) -> None:
        self.look()
        total = self.counts()
        self.levels.append(
            Level(stage=stage, began_ns=at_ns, looked_ns=at_ns, before=total, counts=total.since(total))
        )

    def look(self) -> None:
        """Takes in what load processes and collector have said meanwhile. Cheap: reads new lines only."""
        if self._tail is not None:
            for row in self._tail.new_rows():
                if isinstance(row, Sample) and row.source == "engine":
                    self._see(row)
        if self.run is not None and self.run.held is not None and self.levels:
            self.levels[-1].look(self.counts(), self._clock())

    def _see(self, sample: Sample) -> None:
        if sample.gap is not None:
            self.looks_in_vain += 1
            return
        before, self.seen = self.seen, sample
        if self.levels:
            self.levels[-1].see(sample, _preempted(before, sample))

    def judged(self, verdict: Verdict) -> None:
        """The report's own, made of the rows when the run had ended."""
        self.verdict = verdict

    def counts(self) -> LiveCounts:
        """Of all load processes, since the run began."""
        assert self.run is not None
        return added_up(self._news(), self.run.run.scenario.limits)

    def workers(self) -> dict[str, Mapping[str, float]]:
        """The last signals of each load process."""
        return {f"w{news.worker:02d}": news.signals for news in self._news()}

    @property
    def preemptions_total(self) -> float | None:
        """The server's own counter, as last seen."""
        return None if self.seen is None else self.seen.signals.get("preemptions_total")

    @property
    def prediction(self) -> Prediction | None:
        return None if self.run is None else self.run.run.prediction

    @property
    def stage(self) -> PlannedStage | None:
        return None if self.run is None else self.run.held

    def figures(self) -> RunFigures | None:
        """None before the first run."""
        if self.run is None:
            return None
        self.look()
        manifest, workers, counts = self.run.run.manifest, self.workers(), self.counts()
        counters = {
            "good_requests": float(counts.good),
            "prompt_tokens": float(counts.prompt_tokens),
            "output_tokens": float(counts.output_tokens),
            "due_arrivals": signals_added(workers, "client_due_total"),
            "unsent_arrivals": signals_added(workers, "client_unsent_total"),
        }
        return RunFigures(
            run_id=manifest.run_id,
            model=manifest.model,
            engine=manifest.engine,
            target=manifest.host,
            versions=manifest.versions,
            gauges={**_load(self.stage, workers), **_limits(self.prediction, self.stage, self.verdict)},
            counters=_known(counters),
            counts=counts,
            scrape_errors=self.looks_in_vain,
            workers=workers,
        )


def predicted_limit(prediction: Prediction) -> int:
    """What the verdict compares with: the smaller of KV cache and slots."""
    n_slots = prediction.n_slots
    return prediction.n_kv if n_slots is None else min(prediction.n_kv, n_slots)


def predicted_kv_ratio(prediction: Prediction, users: int) -> float:
    """Mean share of the KV cache that so many requests hold."""
    return min(1.0, users * prediction.held.mean_blocks / prediction.pool.usable_blocks_of_all)


def _preempted(before: Sample | None, sample: Sample) -> float | None:
    total = sample.signals.get("preemptions_total")
    if total is None:
        return None
    earlier = total if before is None else before.signals.get("preemptions_total", total)
    return total - earlier if total >= earlier else total  # a server that restarted counts from 0


def _load(stage: PlannedStage | None, workers: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return _known(
        {
            "step_index": None if stage is None else float(stage.index),
            "target_concurrency": 0.0 if stage is None else float(stage.users),
            "target_request_rate": None if stage is None else stage.rate_per_s,
            "in_flight_requests": signals_added(workers, "client_in_flight"),
            "backlog_requests": signals_added(workers, "client_backlog"),
            "workers": float(len(workers)),
        }
    )


def _limits(
    prediction: Prediction | None, stage: PlannedStage | None, verdict: Verdict | None
) -> dict[str, float]:
    found: dict[str, float | None] = {}
    if prediction is not None:
        found["predicted_max_concurrency"] = float(predicted_limit(prediction))
        found["predicted_guaranteed_concurrency"] = float(prediction.n_guaranteed)
        found["predicted_saturation_concurrency"] = prediction.n_saturation
        found["predicted_slots_concurrency"] = prediction.n_slots
        if stage is not None:
            found["predicted_kv_cache_usage_ratio"] = predicted_kv_ratio(prediction, stage.users)
    if verdict is not None and verdict.status != "VOID":
        found["observed_max_concurrency"] = float(verdict.n_max)
        found["safe_limit_concurrency"] = float(verdict.n_safe) if verdict.status == "PASS" else None
    return _known(found)


def _known(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if value is not None}
