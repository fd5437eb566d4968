"""A worker's side of the crew: users when the master opens a run, and a word when their rows are whole."""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import gevent
from locust.runners import STATE_CLEANUP, STATE_STOPPED, WorkerRunner

from estimator.errors import PlainError
from loadtest.conductor.crew import CLOSED, GIVE_UP, JUDGED, NEWS, OPEN, STAGE, STOP
from loadtest.conductor.far.envoy import Envoy, dated_by
from loadtest.conductor.far.messages import stay_of
from loadtest.conductor.prepare import open_prepared
from loadtest.conductor.roles import role_of
from loadtest.conductor.station import Seat, Station

LOOK_S: Final = 1.0
TELL_S: Final = 1.0


class CannotHere(PlainError):  # noqa: N818  (what is the matter)
    """A file or a variable that is there on the master's machine may be missing on this one."""

    def __init__(self, error: PlainError) -> None:
        super().__init__(f"the worker on {socket.gethostname()} cannot take part: {error}")
        self.exit_code = error.exit_code


class Member:
    """One a worker process. `is_forked`: the master is our parent (--processes), and we end with it."""

    def __init__(self, runner: WorkerRunner, *, is_forked: bool) -> None:
        self._runner = runner
        self._asked_timeout_s = runner.environment.stop_timeout or 0.0
        self._told_timeout_s: float | None = None
        self._station: Station | None = None
        self._envoy = Envoy(runner)
        quitting = runner.environment.events.quitting
        quitting.add_listener(lambda **_: self._envoy.tell_kept())  # type: ignore[no-untyped-call]
        runner.register_message(OPEN, self._open)
        runner.register_message(STAGE, self._stage_begins)
        runner.register_message(STOP, self._stop, concurrent=True)
        runner.greenlet.spawn(self._tell)
        if is_forked:
            runner.greenlet.spawn(self._end_with, os.getppid())

    def load_ends(self) -> None:
        """Before Locust stops our users: as the master told us, or because we alone were told to end."""
        timeout_s = self._told_timeout_s
        self._runner.environment.stop_timeout = self._asked_timeout_s if timeout_s is None else timeout_s
        if self._station is not None:
            self._station.turn_away()

    def load_ended(self) -> None:
        """After the last request."""
        station, self._station = self._station, None
        try:
            if station is not None:
                station.close()
                self._runner.send_message(NEWS, station.message())
        except (PlainError, OSError) as error:
            self._give_up(PlainError(f"the end of the run could not be written: {error}"))
        self._rows_are_closed()

    def _rows_are_closed(self) -> None:
        self._runner.send_message(CLOSED)
        # a worker sleeps that long after a stop before it listens again
        self._runner.environment.stop_timeout = 0.0

    def _open(self, msg: Any, **_: Any) -> None:
        if self._station is not None:  # told again, because the master had lost sight of us
            return
        self._told_timeout_s = None
        data, stay = msg.data, None if msg.data["stay"] is None else stay_of(msg.data["stay"])
        try:
            root, seat = Path(data["folder"]), Seat(worker=int(data["worker"]), workers=int(data["workers"]))
            if stay is not None:
                root, seat = self._envoy.settle(stay, seat.worker), replace(seat, clock=dated_by(stay))
            self._station = Station(
                open_prepared(root),
                {name: role_of(role) for name, role in data["roles"].items()},
                seat,
                self._runner,
                self._give_up,
                lambda judged: self._runner.send_message(JUDGED, judged.message()),
            )
        except PlainError as error:
            self._give_up(error if stay is None else CannotHere(error))

    def _stage_begins(self, msg: Any, **_: Any) -> None:
        if self._station is not None:
            self._station.stage_begins(
                int(msg.data["index"]), msg.data["rate_per_s"], int(msg.data["start_ns"])
            )

    def _stop(self, msg: Any, **_: Any) -> None:
        self._told_timeout_s = float(msg.data["timeout_s"])
        if self._runner.state not in (STATE_CLEANUP, STATE_STOPPED):
            self._runner.stop()
        elif self._runner.state == STATE_STOPPED:
            self._rows_are_closed()

    def _tell(self) -> None:
        """Once a second, what was counted so far; the last word is sent when the rows are closed."""
        while True:
            gevent.sleep(TELL_S)
            if self._station is not None:
                self._runner.send_message(NEWS, self._station.message())

    def _give_up(self, error: PlainError) -> None:
        self._runner.send_message(GIVE_UP, {"sentence": str(error), "exit_code": error.exit_code})

    def _end_with(self, parent: int) -> None:
        """Locust's workers load on for a minute when their master is killed."""
        while os.getppid() == parent:
            gevent.sleep(LOOK_S)
        print("ullage: the master has died, so this worker ends its load", file=sys.stderr, flush=True)
        gevent.spawn(self._runner.quit)
