"""What a load process opens for a run and closes after it: its rows, its desk for the users, its pulse."""

from __future__ import annotations

from collections.abc import Callable

import gevent
from locust.runners import Runner

from loadtest.conductor.prepare import PreparedRun
from loadtest.conductor.pulse import PROBE_S, Pulse
from loadtest.origin import parse_origin, read_api_key
from loadtest.row_file import RowFileError
from loadtest.workers.desk import Desk, reception
from loadtest.workers.prompts import ChatWords
from loadtest.workers.watchdog import Watchdog

SAMPLE_S = 1.0


class Station:
    """Opened after Locust has forked. `give_up` is called with one sentence when rows cannot be kept."""

    def __init__(
        self,
        run: PreparedRun,
        worker: int,
        chat: ChatWords | None,
        runner: Runner,
        give_up: Callable[[str], None],
    ) -> None:
        self._runner = runner
        self._samples = run.folder.samples_writer(f"client-w{worker:02d}")
        self._desk = Desk(
            run_id=run.manifest.run_id,
            worker=worker,
            origin=parse_origin(run.manifest.host),
            key=read_api_key(),
            model=run.manifest.model,
            scenario=run.scenario,
            rows=run.folder.records_writer(worker),
            chat=chat,
            give_up=give_up,
        )
        self._pulse = Pulse(worker)
        self._watchdog = Watchdog(run.scenario.timeouts, self._desk.clock())
        self._greenlets = [gevent.spawn(self._probe), gevent.spawn(self._beat)]
        reception.open(self._desk)

    def turn_away(self) -> None:
        """No desk for users that come now: a master that loses a worker sends its users to another one."""
        reception.close()

    def close(self) -> None:
        self.turn_away()
        gevent.killall(self._greenlets)
        for rows in (self._desk.rows, self._samples):
            rows.sync()
            rows.close()

    def _probe(self) -> None:
        while True:
            due_ns = self._desk.clock() + int(PROBE_S * 1e9)
            gevent.sleep(PROBE_S)
            self._pulse.probed(due_ns)

    def _beat(self) -> None:
        """Once a second: a sample of this process, and the rows pushed to the disk in a thread."""
        pool = gevent.get_hub().threadpool
        while True:
            gevent.sleep(SAMPLE_S)
            users = self._runner.user_count
            silence = self._watchdog.look(self._desk.clock(), self._desk.in_flight, self._desk.last_token_ns)
            if silence is not None:
                self._desk.give_up(silence)
                return
            try:
                self._samples.append(self._pulse.sample(users=users, in_flight=self._desk.in_flight))
                pool.apply(self._desk.rows.sync)
            except (RowFileError, OSError) as error:
                self._desk.give_up(str(error))
                return
