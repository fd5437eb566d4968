"""A made-up run as those see it who watch it live: second by second, through news and collector rows."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any, cast

from fake_run import SECOND_NS, SETTLE_S, STAGE_S, FakeRun

from loadtest.conductor.live.news import News, news_of
from loadtest.conductor.live.standing import Standing
from loadtest.conductor.load_run import LoadRun
from loadtest.conductor.prepare import PreparedRun
from loadtest.live_counts import LiveCounts
from loadtest.records import RequestRecord, Sample
from loadtest.run_folder import PlannedStage, RunFolder
from loadtest.scenario import parse_scenario


class Replay:
    """`standing` is what the exporter and the page look at. Stands in for the LoadRun it is told of."""

    def __init__(self, fake: FakeRun, home: Path, workers: int = 1) -> None:
        manifest = fake.manifest
        scenario = parse_scenario(dict(manifest.scenario))
        folder = RunFolder.create(home, manifest.run_id)
        self.run = PreparedRun(
            folder=folder, manifest=manifest, scenario=scenario, prediction=fake.prediction
        )
        self.stages = [
            PlannedStage(
                index=index,
                label=f"{stage.users} users",
                users=stage.users,
                hold_s=STAGE_S,
                settle_s=SETTLE_S,
                spawn_rate_per_s=100.0,
                rate_per_s=stage.rate_per_s,
            )
            for index, stage in enumerate(fake.stages)
        ]
        self.held: PlannedStage | None = None
        self.now_ns = 0
        self.counts = [LiveCounts(scenario.limits) for _ in range(workers)]
        self.signals: dict[str, float] = {}
        self.standing = Standing(self.news, clock=lambda: self.now_ns)
        rows = fake.rows()
        self._ended: dict[int, list[RequestRecord]] = defaultdict(list)
        for record in rows.requests:
            self._ended[record.done_ns // SECOND_NS].append(record)
        self._seen: dict[int, list[Sample]] = defaultdict(list)
        for sample in rows.samples:
            self._seen[sample.at_ns // SECOND_NS].append(sample)
        self._collector = folder.samples_writer("collector")

    def news(self) -> list[News]:
        return [
            news_of(self._message(worker, counts), self.run.scenario.limits)
            for worker, counts in enumerate(self.counts)
        ]

    def _message(self, worker: int, counts: LiveCounts) -> dict[str, Any]:
        signals = {**self.signals, "client_in_flight": 1.0}
        run_id = self.run.manifest.run_id
        return {"run_id": run_id, "worker": worker, "signals": signals, "counts": counts.message()}

    def play(self, seconds: int | None = None) -> Standing:
        """The first `seconds`, or all of it to its end."""
        self.standing.begins(cast(LoadRun, self))
        whole_s = len(self.stages) * STAGE_S
        for second in range(whole_s if seconds is None else seconds):
            if second % STAGE_S == 0:
                self.held = self.stages[second // STAGE_S]
                self.standing.stage_begins(self.held, second * SECOND_NS)
            self._pass_second(second)
        if seconds is None:
            self.held = None
        return self.standing

    def _pass_second(self, second: int) -> None:
        self.now_ns = (second + 1) * SECOND_NS
        for record in self._ended[second]:
            self.counts[record.seq % len(self.counts)].add(record, [])
        for sample in self._seen[second]:
            if sample.source == "client":
                self.signals = dict(sample.signals)
            else:
                self._collector.append(sample)
        self.standing.look()
