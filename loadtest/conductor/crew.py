"""What the process that decides the load and its workers say to each other, over Locust's own messages.

Locust's master calls a test stopped as soon as it has said so to its workers. The rows of a run are only
whole when every worker has written its last, so here the master waits to be told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

import gevent
from locust.runners import HEARTBEAT_LIVENESS, STATE_MISSING, MasterRunner

from estimator.errors import EXIT_VOID, PlainError
from loadtest.conductor.far.messages import Stay
from loadtest.conductor.far.outposts import Outposts
from loadtest.conductor.live.news import News, news_of
from loadtest.conductor.prepare import PreparedRun
from loadtest.conductor.roles import Role
from loadtest.records import EventKind
from loadtest.row_file import is_locked
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
MEET_S_MAX: Final = 15.0
NO_ANSWER: Final = "a worker is connected and does not answer: start it with the master's version of Ullage"


class Witness(Protocol):
    """Where the crew writes down what it finds."""

    def note(self, event: EventKind, data: Mapping[str, str | int | float | bool | None]) -> None:
        """A row of the run."""

    def void(self, error: PlainError) -> None:
        """The run cannot be judged, and this is why."""


class NoWorkers(PlainError):  # noqa: N818  (what is missing)
    """A master alone loads nothing."""


class GaveUp(PlainError):  # noqa: N818  (what happened)
    """What a worker said when it could not go on."""

    def __init__(self, sentence: str, exit_code: int) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code


class NoAnswer(PlainError):  # noqa: N818  (what is missing)
    """A worker is connected and says nothing."""


class Silent(PlainError):  # noqa: N818  (how they are)
    """No load process answers: nothing was wrong with the server."""

    exit_code = EXIT_VOID


class Crew:
    """The users of a run where they live in worker processes: the master's side."""

    def __init__(
        self,
        runner: MasterRunner,
        give_up: Callable[[PlainError], None],
        hear: Callable[[Judgements], None],
        witness: Witness,
    ) -> None:
        self._runner = runner
        self._give_up = give_up
        self._witness = witness
        self._outposts = Outposts(runner, self._send_open, self._refuse, witness.note)
        self._refusal: PlainError | None = None
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
            self._meet(client_id)

    def open(self, run: PreparedRun, roles: Mapping[str, Role]) -> None:
        """Returns when every worker was told. Raises PlainError when one of them cannot be."""
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
        self._at_work.clear()
        try:
            self._outposts.begin(run.folder)
            for client_id in present:
                self._meet(client_id)
            self._wait_for(set(present))
        except PlainError:
            self.load_ends(timeout_s=0.0)
            raise

    def stage_begins(self, stage: PlannedStage, start_ns: int) -> None:
        """All workers date by the clock of `start_ns`, as well as they know it."""
        self._stage_data = {"index": stage.index, "rate_per_s": stage.rate_per_s, "start_ns": start_ns}
        for client_id in self._at_work:
            self._runner.send_message(STAGE, self._stage_data, client_id=client_id)

    def load_ends(self, *, timeout_s: float) -> None:
        """Ends the load of every worker and returns when their rows are whole, or they are gone."""
        if self._open_data is None:
            return
        self._open_data = None
        crew = set(self._at_work)
        for client_id in crew:
            self._runner.send_message(STOP, {"timeout_s": timeout_s}, client_id=client_id)
        with gevent.Timeout(timeout_s + CLOSE_S_MAX, False):
            while self._at_work.intersection(self._present()):
                gevent.sleep(POLL_S)
        for lost in self._outposts.gather((crew - self._at_work).intersection(self._present())):
            self._witness.void(lost)
        self._outposts.end()
        self._at_work.clear()

    def silence(self) -> Silent | None:
        """Locust ends a test when its last worker has missed its heartbeats, and says nothing of it.

        One that is starved of a processor misses them too: it lives, and so still holds its rows.
        """
        missing = {worker.id for worker in self._runner.clients.all if worker.state == STATE_MISSING}
        if self._folder is None or not self._at_work or not self._at_work <= missing:
            return None
        who = f"no load process of {len(self._at_work)} has answered for {HEARTBEAT_LIVENESS} s"
        if any(map(is_locked, self._folder.text_segments())):
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

    def _wait_for(self, wanted: set[str]) -> None:
        self._refusal = None
        with gevent.Timeout(MEET_S_MAX, NoAnswer(NO_ANSWER)):
            # none is let in any more once the load was told to end
            while self._open_data is not None and wanted.intersection(self._present()) - self._at_work:
                gevent.sleep(POLL_S / 10)
                if self._refusal is not None:
                    raise self._refusal

    def _refuse(self, error: PlainError) -> None:
        self._refusal = error
        if self._stage_data is not None:  # it came late, and nobody waits for it
            self._give_up(error)

    def _meet(self, client_id: str) -> None:
        self._outposts.meet(client_id, self._numbers.setdefault(client_id, len(self._numbers)))

    def _send_open(self, client_id: str, stay: Stay | None) -> None:
        if self._open_data is None:  # the run has ended meanwhile
            return
        self._at_work.add(client_id)
        own = {"worker": self._numbers[client_id], "stay": None if stay is None else stay.message()}
        self._runner.send_message(OPEN, {**self._open_data, **own}, client_id=client_id)
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
