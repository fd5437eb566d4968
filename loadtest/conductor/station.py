"""What a load process opens for a run and closes after it: its rows, its desk for the users, its pulse."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import gevent
from locust.runners import Runner

from estimator.errors import PlainError
from loadtest.conductor.live.news import News, news_of
from loadtest.conductor.prepaid import prepay
from loadtest.conductor.prepare import PreparedRun
from loadtest.conductor.pulse import PROBE_S, Pulse
from loadtest.conductor.roles import Role
from loadtest.live_counts import LiveCounts
from loadtest.origin import read_api_key
from loadtest.row_file import RowFileError, RowWriter
from loadtest.run_folder import PlannedStage
from loadtest.workers.desk import Desk, Script, reception
from loadtest.workers.docket import Docket, Judgements
from loadtest.workers.watchdog import Watchdog
from loadtest.workload.asker import open_workload

SAMPLE_S = 1.0
SAVE_S = 1.0
REPORT_S = 0.5
TALLY_BEATS = 10
"""Counts of streams are written so seldom: as much of them a killed worker may lose."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """One load process among those that share the arrivals of an open loop."""

    worker: int
    """Its rows carry this number, after those of earlier parts; one from `workers` on came late and has no
    share.
    """
    workers: int
    clock: Callable[[], int] = time.perf_counter_ns
    """Dates the rows: nanoseconds of the master's monotonic clock."""


class Station:
    """Opened after Locust has forked. `give_up` is called when the load cannot go on.

    `tell` is given what came of the requests about once a second, where the run searches.
    """

    def __init__(
        self,
        run: PreparedRun,
        roles: Mapping[str, Role],
        seat: Seat,
        runner: Runner,
        give_up: Callable[[PlainError], None],
        tell: Callable[[Judgements], None],
    ) -> None:
        worker = run.manifest.first_worker + seat.worker
        self._run = run
        self._seat = seat
        self._runner = runner
        self._samples = run.folder.samples_writer(f"client-w{worker:02d}")
        self._streams = run.folder.streams_writer(worker)
        self._desk = Desk(
            worker=worker,
            origin=run.manifest.origin,
            key=read_api_key(variable=run.manifest.access.api_key_variable),
            scripts={name: self._script(role) for name, role in roles.items()},
            rows=run.folder.records_writer(worker),
            watchdog=Watchdog(run.scenario.timeouts, seat.clock()),
            counts=LiveCounts(run.scenario.limits),
            give_up=give_up,
            clock=seat.clock,
            docket=None if run.scenario.search is None else Docket(worker, run.scenario.limits),
        )
        self._tell = tell
        prepay()
        self._pulse = Pulse(worker, seat.clock)
        self._signals: dict[str, float] = {}
        self._greenlets = [gevent.spawn(work) for work in (self._probe, self._beat, self._save, self._report)]
        reception.open(self._desk)

    def _script(self, role: Role) -> Script:
        manifest, scenario = self._run.manifest, role.scenario
        return Script(
            scenario=scenario,
            asker=open_workload(
                scenario,
                model=role.model,
                run_id=manifest.run_id,
                worker=self._seat.worker,
                workers=self._seat.workers,
                chat=role.words,
            ),
            name=scenario.endpoint if role.model == manifest.model else f"{scenario.endpoint} {role.model}",
        )

    def stage_begins(self, index: int, rate_per_s: float | None, start_ns: int) -> None:
        """The whole load is at this stage since `start_ns`; an open loop's arrivals begin there."""
        scenario, seat = self._run.scenario, self._seat
        times_s: Iterator[float] | None
        if scenario.arrivals.kind == "closed" or (rate_per_s is None and scenario.trace is None):
            times_s = None
        elif seat.worker >= seat.workers:
            times_s = iter(())
        else:
            from loadtest.workload.arrivals import arrival_times_s  # a closed loop does not wait for it

            seed = f"{scenario.seed}/{index}"
            times_s = arrival_times_s(
                scenario.arrivals, rate_per_s, seed, seat.worker, seat.workers, scenario.trace
            )
        self._desk.schedule.begin(times_s, start_ns)

    def message(self) -> dict[str, Any]:
        """What this process has counted so far and how it was at its last sample: see live/news.py."""
        return {
            "run_id": self._run.manifest.run_id,
            "worker": self._seat.worker,
            "signals": {**self._signals, "client_in_flight": float(self._desk.in_flight)},
            "counts": self._desk.counts.message(),
        }

    def turn_away(self) -> None:
        """No desk for users that come now: a master that loses a worker sends its users to another one."""
        reception.close()
        self._desk.schedule.end()

    def close(self) -> None:
        self.turn_away()
        gevent.killall(self._greenlets)
        try:
            self._write_sample()
            self._write_streams()
        finally:
            self._pulse.close()
            for rows in (self._desk.rows, self._samples, self._streams):
                rows.sync()
                rows.close()

    def _write_sample(self) -> None:
        desk = self._desk
        sample = self._pulse.sample(
            users=self._runner.user_count, in_flight=desk.in_flight, arrivals=desk.schedule.signals()
        )
        self._signals = dict(sample.signals)
        self._samples.append(sample)

    def _write_streams(self) -> None:
        for row in self._desk.tally.taken():
            self._streams.append(row)

    def _probe(self) -> None:
        while True:
            due_ns = self._desk.clock() + int(PROBE_S * 1e9)
            gevent.sleep(PROBE_S)
            self._pulse.probed(due_ns)

    def _beat(self) -> None:
        """Once a second: does the server still generate, and a sample of this process."""
        desk = self._desk
        for beat in itertools.count(1):
            gevent.sleep(SAMPLE_S)
            death = desk.watchdog.look(desk.clock(), desk.in_flight, lambda: desk.last_token_ns)
            if death is not None:
                desk.give_up(death)
                return
            try:
                self._write_sample()
                if beat % TALLY_BEATS == 0:
                    self._write_streams()
            except (RowFileError, OSError) as error:
                desk.give_up(PlainError(str(error)))
                return

    def _report(self) -> None:
        desk = self._desk
        while desk.docket is not None:
            gevent.sleep(REPORT_S)
            self._tell(desk.docket.taken(desk.clock()))

    def _save(self) -> None:
        """The rows pushed to the disk, a second after the last time was over: a slow disk delays nothing."""
        pool = gevent.get_hub().threadpool
        while True:
            gevent.sleep(SAVE_S)
            refusal = pool.apply(_sync, (self._desk.rows,))
            if refusal is not None:
                self._desk.give_up(PlainError(str(refusal)))
                return


def _sync(rows: RowWriter) -> RowFileError | OSError | None:
    """In a thread, where gevent would print what is raised."""
    try:
        rows.sync()
    except (RowFileError, OSError) as error:
        return error
    return None


class OwnUsers:
    """The users of a run where they live in the process that decides the load."""

    def __init__(
        self, runner: Runner, give_up: Callable[[PlainError], None], hear: Callable[[Judgements], None]
    ) -> None:
        self._runner = runner
        self._give_up = give_up
        self._hear = hear
        self._station: Station | None = None
        self._last: list[News] = []

    def open(self, run: PreparedRun, roles: Mapping[str, Role]) -> None:
        self._limits = run.scenario.limits
        self._last = []
        seat = Seat(worker=0, workers=1)
        self._station = Station(run, roles, seat, self._runner, self._give_up, self._hear)

    def stage_begins(self, stage: PlannedStage, start_ns: int) -> None:
        if self._station is not None:
            self._station.stage_begins(stage.index, stage.rate_per_s, start_ns)

    def load_ends(self, *, timeout_s: float) -> None:
        if self._station is not None:
            self._station.turn_away()

    def silence(self) -> None:
        """This very process asks."""

    def news(self) -> list[News]:
        """As of now; after the end of a run, as it ended."""
        if self._station is not None:
            return [news_of(self._station.message(), self._limits)]
        return self._last

    def close(self) -> None:
        station, self._station = self._station, None
        if station is not None:
            try:
                station.close()
            finally:
                self._last = [news_of(station.message(), self._limits)]
