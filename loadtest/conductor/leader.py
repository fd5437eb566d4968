"""Decides the load: opens a run at the first tick of the ramp, steers it, closes it after its last row."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import time
from argparse import Namespace
from collections.abc import Mapping
from typing import Final, Protocol

import gevent
from locust.env import Environment
from locust.runners import Runner
from locust.stats import CSV_STATS_INTERVAL_SEC

from estimator.errors import EXIT_INTERRUPTED, PlainError
from loadtest.conductor.course import Course, StagedCourse
from loadtest.conductor.live.judging import judge_in_thread
from loadtest.conductor.live.news import News
from loadtest.conductor.live.standing import Standing
from loadtest.conductor.load_run import LoadRun, asked_stage
from loadtest.conductor.options import run_as_asked
from loadtest.conductor.prepare import PreparedRun
from loadtest.conductor.ramp import ScenarioRamp
from loadtest.conductor.roles import Role, RoleError, cast, chat_classes, host_of, pauses
from loadtest.origin import read_api_key, require_host_of_command
from loadtest.records import EventKind
from loadtest.run_folder import PlannedStage
from loadtest.workers.docket import Judgements

DRAIN_S_MAX: Final = 60.0
LOOK_S: Final = 1.0
FORM_USERS: Final = 1
"""What Locust's form shows before a person types: not a number anybody asked for."""


class Hands(Protocol):
    """Where the users live: in this process, or in workers."""

    def open(self, run: PreparedRun, roles: Mapping[str, Role]) -> None:
        """Makes ready for users. Raises PlainError."""

    def stage_begins(self, stage: PlannedStage, start_ns: int) -> None:
        """The load is at this stage since `start_ns`."""

    def load_ends(self, *, timeout_s: float) -> None:
        """No user begins now; those at work have so long to end."""

    def silence(self) -> PlainError | None:
        """Why nobody asks any more, where no load process answers; None where one does."""

    def news(self) -> list[News]:
        """What each load process has counted in this run, or in the last one."""

    def close(self) -> None:
        """After the last request. Raises PlainError or OSError."""


class Leader:
    """One where the load is decided: in the only process, or in the master. `hands` is set before a run."""

    hands: Hands

    def __init__(self, environment: Environment, runner: Runner) -> None:
        options = environment.parsed_options
        assert options is not None
        self._environment = environment
        self._runner = runner
        self._said = Namespace(**vars(options))  # the page's form writes into the options: any of them
        self._form: Namespace = options
        """Users, rate and time of the run that is to begin."""
        self._host_of_command: str | None = environment.host
        self._asked_timeout_s = environment.stop_timeout or 0.0
        self._asked_users: int | None = None
        self._run: LoadRun | None = None
        self.standing = Standing(lambda: self.hands.news())
        self._is_drained = False
        """The plan is over: users end with their answers, where a run that is broken off cancels them."""

    @property
    def is_open(self) -> bool:
        return self._run is not None

    def begin(self) -> bool:
        """Opens the run; False when it cannot start and the sentence was shown."""
        self._environment.process_exit_code = None
        try:
            self._open()
        except PlainError as error:
            self._complain(error)
            self.load_ended()
            return False
        return True

    def _open(self) -> None:
        classes = chat_classes(self._environment.user_classes)
        self._asked_users = self._users_asked_for()
        host = host_of(self._environment.host, classes)
        key = read_api_key(variable=self._said.api_key_variable or None)
        require_host_of_command(host, host_of(self._host_of_command, classes), key)
        run = run_as_asked(self._said, host, self._asked_users)
        roles = cast(run, classes)
        has_pauses = pauses(classes, roles)
        course = self._course(run, has_pauses=has_pauses)
        self._run = LoadRun(run, course, self._stage_begins, has_pauses=has_pauses)
        self.hands.open(run, roles)
        self.standing.begins(self._run)
        self._is_drained = False
        drain_s = min(run.scenario.timeouts.total_s, DRAIN_S_MAX)
        self._environment.stop_timeout = max(self._asked_timeout_s, drain_s)
        gc.freeze()  # what is alive now stays alive: the collector need not look at it again

    def _stage_begins(self, stage: PlannedStage, start_ns: int) -> None:
        self.hands.stage_begins(stage, start_ns)
        self.standing.stage_begins(stage, start_ns)

    def _course(self, run: PreparedRun, *, has_pauses: bool) -> Course:
        """Raises PlainError."""
        if self._asked_users is not None:
            rate_per_s = float(self._form.spawn_rate or run.scenario.spawn_rate_per_s)
            # without a ramp it is Locust that keeps the time
            run_s = self._form.run_time if self._has_ramp else None
            return StagedCourse((asked_stage(run, self._asked_users, rate_per_s, run_s),))
        if run.scenario.search is None:
            return StagedCourse(run.manifest.stages, run.manifest.stages_held)
        if has_pauses:
            raise RoleError("a search needs users who ask again at once: leave wait_time out, or give stages")
        from loadtest.conductor.pilot import Pilot  # other loads do not wait for what a search needs
        from loadtest.conductor.search_plan import plan_search

        plan = plan_search(run.scenario, run.prediction, run.manifest.users_cap)
        past = run.folder.read_search()  # there before the load only where that goes on
        return Pilot(plan, run.scenario, time.perf_counter_ns(), run.folder.write_search, past)

    @property
    def _has_ramp(self) -> bool:
        return isinstance(self._environment.shape_class, ScenarioRamp)

    def _users_asked_for(self) -> int | None:
        said, users = self._said, self._form.num_users
        if not self._has_ramp:
            return self._runner.target_user_count
        from_form = not said.headless and (users or FORM_USERS) != FORM_USERS
        asked = {
            "auto": said.num_users is not None or from_form,
            "stages": False,
            "search": False,
            "soak": False,
            "users": True,
        }[said.load]
        return int(users or 1) if asked else None

    def test_starts(self) -> None:
        """Opens the run where no ramp of ours does: the locustfile has none, or the picker says "Default"."""
        if self._has_ramp or self.is_open:
            return
        if self.begin():
            self.stage(0.0)
        else:
            gevent.spawn(self._end)

    def stage(self, elapsed_s: float) -> PlannedStage | None:
        """None when the plan is over, or cannot be followed any more."""
        run_s, cuts_stages = self._form.run_time, self._asked_users is None
        try:
            is_late = self._run is None or (cuts_stages and run_s and elapsed_s >= run_s)
            users, preempted = self._runner.user_count, self.standing.preemptions_total
            stage = None if is_late or self._run is None else self._run.stage(elapsed_s, users, preempted)
        except PlainError as error:
            self._complain(error)
            return None
        self._is_drained = stage is None
        self.standing.look()
        return stage

    def hear(self, judged: Judgements) -> None:
        """What came of the requests of a load process."""
        if self._run is not None:
            self._run.hear(judged)

    def note(self, event: EventKind, data: Mapping[str, str | int | float | bool | None]) -> None:
        """A row of the run, if there is one."""
        if self._run is not None:
            self._run.note(event, data)

    def void(self, error: PlainError) -> None:
        """What was found when the load had ended: the rows that are here are judged by nobody."""
        self._complain(error)
        with contextlib.suppress(PlainError, OSError):  # a disk that is full takes no row of that either
            self.note("fault", {"reason": str(error), "voids": True})

    def load_ends(self) -> None:
        """Before Locust stops the users of this process, or of the crew.

        It may say so again while the crew ends: when the last worker has fallen silent meanwhile.
        """
        if self._run is None or self._run.has_ended:
            return
        self.standing.look()
        if not self._is_drained and (silence := self.hands.silence()) is not None:
            self._complain(silence)
            self._run.gave_up(silence)
        self._run.load_ended()
        if not self._is_drained:
            self._environment.stop_timeout = self._asked_timeout_s
        # Locust's master says that a test has stopped while its workers still run
        self.hands.load_ends(timeout_s=self._environment.stop_timeout)

    def load_ended(self) -> None:
        """After the last request."""
        run, self._run = self._run, None
        if run is None:
            return
        try:
            try:
                self.hands.close()
            finally:
                run.close()
        except (PlainError, OSError) as error:
            self._complain(PlainError(f"the end of the run could not be written: {error}"))
        broken_off = not (run.is_complete or self._is_drained)
        if broken_off and self._said.headless and self._environment.process_exit_code is None:
            self._environment.process_exit_code = EXIT_INTERRUPTED
        root = run.run.folder.root
        if not self._said.headless:  # else this process ends at once, and nobody could see it
            judge_in_thread(run.run.folder, self.standing.judged)
        print(f"rows are in {root}; make the report with: ullage report {root}", flush=True)

    def quitting(self) -> None:
        """Before Locust's last words: it has not always stopped the load yet, nor written its whole table."""
        if self.is_open:
            self._runner.stop()
        if self._said.csv_prefix:
            gevent.sleep(CSV_STATS_INTERVAL_SEC * 1.2)

    def give_up(self, error: PlainError) -> None:
        """The load cannot go on; where a web page is shown, that stays."""
        if self._environment.process_exit_code is None:
            self._complain(error)
            if self._run is not None:
                self._run.gave_up(error)
            gevent.spawn(self._end)

    def _end(self) -> None:
        if self._said.headless:
            self._runner.quit()
        else:
            self._runner.stop()

    def end_with(self, supervisor: int) -> None:
        """Gives up when the process has died that drives us: nobody would make a report of this load."""
        while os.getppid() == supervisor:
            gevent.sleep(LOOK_S)
        self.give_up(PlainError("ullage signoff has died, so its load ends"))

    def _complain(self, error: PlainError) -> None:
        print(f"ullage: {error}", file=sys.stderr, flush=True)
        self._environment.process_exit_code = error.exit_code
