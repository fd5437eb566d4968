"""What the process that decides the load and its workers say to each other, over Locust's own messages.

Locust's master calls a test stopped as soon as it has said so to its workers. The rows of a run are only
whole when every worker has written its last, so here the master waits to be told.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import gevent
from locust.runners import STATE_CLEANUP, STATE_MISSING, STATE_STOPPED, MasterRunner, WorkerRunner

from estimator.errors import PlainError
from loadtest.conductor.prepare import PreparedRun, open_prepared
from loadtest.workers.prompts import ChatWords

OPEN: Final = "ullage-open"
STOP: Final = "ullage-stop"
CLOSED: Final = "ullage-closed"
GIVE_UP: Final = "ullage-give-up"
CLOSE_S_MAX: Final = 5.0
"""How long a worker may take to write its last rows once its requests have ended."""
POLL_S: Final = 0.05


class Crew:
    """The master's side: knows its workers by the number their rows carry."""

    def __init__(self, runner: MasterRunner, give_up: Callable[[str], None]) -> None:
        self._runner = runner
        self._give_up = give_up
        self._numbers: dict[str, int] = {}
        self._at_work: set[str] = set()
        self._run: tuple[PreparedRun, ChatWords | None] | None = None
        runner.register_message(CLOSED, self._closed)
        runner.register_message(GIVE_UP, self._gave_up)

    def joined(self, client_id: str) -> None:
        """A worker is ready: for the first time, again after a run, or in the middle of one."""
        self._numbers.setdefault(client_id, len(self._numbers))
        if self._run is not None:
            self._send_open(client_id, *self._run)

    def open(self, run: PreparedRun, words: ChatWords | None) -> None:
        self._run = run, words
        for client_id in self._numbers:
            self._send_open(client_id, run, words)

    def stop(self, *, drain: bool, timeout_s: float) -> None:
        """Ends the load of every worker and returns when their rows are whole, or they are gone."""
        if self._run is None:
            return
        self._run = None
        for client_id in self._at_work:
            self._runner.send_message(STOP, {"drain": drain}, client_id=client_id)
        with gevent.Timeout(timeout_s + CLOSE_S_MAX, False):
            while self._at_work & self._present():
                gevent.sleep(POLL_S)
        self._at_work.clear()

    def _present(self) -> set[str]:
        return {worker.id for worker in self._runner.clients.all if worker.state != STATE_MISSING}

    def _send_open(self, client_id: str, run: PreparedRun, words: ChatWords | None) -> None:
        self._at_work.add(client_id)
        data = {
            "folder": str(run.folder.root.resolve()),
            "worker": self._numbers[client_id],
            "words": None if words is None else dataclasses.asdict(words),
        }
        self._runner.send_message(OPEN, data, client_id=client_id)

    def _closed(self, msg: Any, **_: Any) -> None:
        self._at_work.discard(msg.node_id)

    def _gave_up(self, msg: Any, **_: Any) -> None:
        self._give_up(str(msg.data["sentence"]))


class Member:
    """A worker's side."""

    def __init__(
        self,
        runner: WorkerRunner,
        opened: Callable[[PreparedRun, int, ChatWords | None, Member], None],
        stops: Callable[[bool], None],
    ) -> None:
        self.runner = runner
        self._opened = opened
        self._stops = stops
        runner.register_message(OPEN, self._open)
        runner.register_message(STOP, self._stop, concurrent=True)

    def give_up(self, sentence: str) -> None:
        self.runner.send_message(GIVE_UP, {"sentence": sentence})

    def rows_closed(self) -> None:
        """Nothing more will be written by this worker in this run."""
        self.runner.send_message(CLOSED)
        # a worker sleeps that long after a stop before it listens again
        self.runner.environment.stop_timeout = 0.0

    def _open(self, msg: Any, **_: Any) -> None:
        words = msg.data["words"]
        chat = (
            None
            if words is None
            else ChatWords(words=tuple(words["words"]), overhead_tokens=words["overhead_tokens"])
        )
        try:
            self._opened(open_prepared(Path(msg.data["folder"])), int(msg.data["worker"]), chat, self)
        except PlainError as error:
            self.give_up(str(error))

    def _stop(self, msg: Any, **_: Any) -> None:
        self._stops(bool(msg.data["drain"]))
        if self.runner.state not in (STATE_CLEANUP, STATE_STOPPED):
            self.runner.stop()
        elif self.runner.state == STATE_STOPPED:
            self.rows_closed()
