"""What the process that decides the load and its workers say to each other, over Locust's own messages.

Locust's master calls a test stopped as soon as it has said so to its workers. The rows of a run are only
whole when every worker has written its last, so here the master waits to be told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import gevent
from locust.runners import HEARTBEAT_LIVENESS, STATE_MISSING, MasterRunner

from estimator.errors import EXIT_VOID, PlainError
from loadtest.conductor.live.news import News, news_of
from loadtest.conductor.prepare import PreparedRun
from loadtest.conductor.roles import Role
from loadtest.run_folder import PlannedStage, RunFolder
from loadtest.scenario import Limits
from loadtest.workers.docket import Judgements, judgements_of

OPEN: Final = "ullage-open"
STAGE: Final = "ullage-stage"
STOP: Final = "ullage-stop"
CLOSED: Final = "ullage-closed"
JUDGED: Final = "ullage-judged"
GIVE_UP: Final = "ullage-give-up"
NEWS: Final = "ullage-news"
CLOSE_S_MAX: Final = 5.0
"""How long a worker may take to write its last rows once its requests have ended."""
POLL_S: Final = 0.05


class NoWorkers(PlainError):  # noqa: N818  (what is missing)
    """A master alone loads nothing."""


class GaveUp(PlainError):  # noqa: N818  (what happened)
    """What a worker said when it could not go on."""

    def __init__(self, sentence: str, exit_code: int) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code


class Silent(PlainError):  # noqa: N818  (how they are)
    """No load process answers: nothing was wrong with the server."""

    exit_code = EXIT_VOID


class Crew:
    """The users of a run where they live in worker processes: the master's side."""

    def __init__(
        self, runner: MasterRunner, give_up: Callable[[PlainError], None], hear: Callable[[Judgements], None]
    ) -> None:
        self._runner = runner
        self._give_up = give_up
        self._numbers: dict[str, int] = {}
        self._at_work: set[str] = set()
        self._folder: RunFolder | None = None
        self._open_data: dict[str, Any] | None = None
        self._stage_data: dict[str, Any] | None = None
        runner.register_message(CLOSED, self._closed)
        self._news: dict[int, News] = {}
        self._run_id, self._limits = "", Limits()
        runner.register_message(GIVE_UP, self._gave_up)
        runner.register_message(NEWS, self._told)
        runner.register_message(JUDGED, lambda msg, **_: hear(judgements_of(msg.data)))

    def joined(self, client_id: str) -> None:
        """A worker is ready: for the first time, again after a run, or in the middle of one."""
        if self._open_data is not None:
            self._send_open(client_id)

    def open(self, run: PreparedRun, roles: Mapping[str, Role]) -> None:
        """Raises NoWorkers."""
        present = self._present()
        if not present:
            raise NoWorkers("no worker has connected: start one with locust --worker, then start again")
        self._numbers = {client_id: number for number, client_id in enumerate(present)}
        self._folder, self._stage_data = run.folder, None
        self._news = {}
        self._run_id, self._limits = run.manifest.run_id, run.scenario.limits
        self._open_data = {
            "folder": str(run.folder.root.resolve()),
            "workers": len(present),
            "roles": {name: role.message() for name, role in roles.items()},
        }
        for client_id in present:
            self._send_open(client_id)

    def stage_begins(self, stage: PlannedStage, start_ns: int) -> None:
        """All processes of a machine share the clock of `start_ns`."""
        self._stage_data = {"index": stage.index, "rate_per_s": stage.rate_per_s, "start_ns": start_ns}
        for client_id in self._at_work:
            self._runner.send_message(STAGE, self._stage_data, client_id=client_id)

    def load_ends(self, *, timeout_s: float) -> None:
        """Ends the load of every worker and returns when their rows are whole, or they are gone."""
        if self._open_data is None:
            return
        self._open_data = None
        for client_id in self._at_work:
            self._runner.send_message(STOP, {"timeout_s": timeout_s}, client_id=client_id)
        with gevent.Timeout(timeout_s + CLOSE_S_MAX, False):
            while self._at_work.intersection(self._present()):
                gevent.sleep(POLL_S)
        self._at_work.clear()

    def silence(self) -> Silent | None:
        """Locust ends a test when its last worker has missed its heartbeats, and says nothing of it.

        One that is starved of a processor misses them too: it lives, and so still holds its rows.
        """
        missing = {worker.id for worker in self._runner.clients.all if worker.state == STATE_MISSING}
        if self._folder is None or not self._at_work or not self._at_work <= missing:
            return None
        who = f"no load process of {len(self._at_work)} has answered for {HEARTBEAT_LIVENESS} s"
        if any(map(self._folder.is_being_written, self._folder.text_segments())):
            return Silent(
                f"{who}, though they live: this machine was too busy to run the load generator; end what "
                "else runs here, or give it more cores"
            )
        return Silent(f"{who}: all have died")

    def news(self) -> list[News]:
        """The last word of each worker, also of one that has died since."""
        return [self._news[worker] for worker in sorted(self._news)]

    def close(self) -> None:
        """The workers have closed their own rows."""

    def _present(self) -> list[str]:
        return [worker.id for worker in self._runner.clients.all if worker.state != STATE_MISSING]

    def _send_open(self, client_id: str) -> None:
        assert self._open_data is not None
        number = self._numbers.setdefault(client_id, len(self._numbers))
        self._at_work.add(client_id)
        self._runner.send_message(OPEN, {**self._open_data, "worker": number}, client_id=client_id)
        if self._stage_data is not None:
            self._runner.send_message(STAGE, self._stage_data, client_id=client_id)

    def _closed(self, msg: Any, **_: Any) -> None:
        self._at_work.discard(msg.node_id)

    def _told(self, msg: Any, **_: Any) -> None:
        news = news_of(msg.data, self._limits)
        if news.run_id == self._run_id:  # a worker may be slow to end an earlier one
            self._news[news.worker] = news

    def _gave_up(self, msg: Any, **_: Any) -> None:
        self._give_up(GaveUp(str(msg.data["sentence"]), int(msg.data["exit_code"])))
