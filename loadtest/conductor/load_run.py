"""One run from its first tick to its last row, in the process that decides the load (master or single).

Knows nothing of Locust: the ramp asks it for the target, the hooks tell it when the load ends.
"""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from estimator.errors import PlainError
from loadtest.access import require_below_cap
from loadtest.conductor.course import FOREVER_S, Course, Moment, Step
from loadtest.conductor.prepare import PreparedRun
from loadtest.conductor.processes import end_process
from loadtest.records import Event, EventKind
from loadtest.run_folder import PlannedStage, RunState
from loadtest.workers.docket import Judgements


class LoadRun:
    """Writes the run's events, keeps its collector alive and its manifest true."""

    def __init__(
        self,
        run: PreparedRun,
        course: Course,
        stage_begins: Callable[[PlannedStage, int], None],
        *,
        has_pauses: bool = False,
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        # a number from the command line or the web page was in no plan
        require_below_cap(course.users_max, run.manifest.users_cap)
        self.run = run
        self._course = course
        self._stage_begins = stage_begins
        self._has_pauses = has_pauses
        self._clock = clock
        self._step: Step | None = None
        self._events = run.folder.events_writer()
        self._collector = start_collector(run)
        self._ended = False
        self.note("run_start", {"stages": len(course.stages)})

    def stage(
        self, elapsed_s: float, users: int, preemptions_total: float | None = None
    ) -> PlannedStage | None:
        """What the load should be now, while there are so many users; None when the plan is over.

        A stage that begins becomes a row, and so does the moment it has settled.
        """
        before, at_ns = self._step, self._clock()
        if not self._ended:  # Locust's ramp ticks on while the load is being stopped
            self._step = self._course.step(
                Moment(elapsed_s=elapsed_s, at_ns=at_ns, users=users, preemptions_total=preemptions_total)
            )
        step = self._step
        if step is None:
            return None
        if before is None or before.stage.index != step.stage.index:
            self._begin(step.stage, at_ns)
        elif step.has_settled and not before.has_settled:
            self._events.append(Event(at_ns=at_ns, event="settled", data={"index": step.stage.index}))
        return step.stage

    @property
    def held(self) -> PlannedStage | None:
        """The stage in force; None before the first and when no load is held any more."""
        return None if self._step is None or self._ended else self._step.stage

    @property
    def has_ended(self) -> bool:
        """The load was told to end; rows may still come."""
        return self._ended

    @property
    def stages(self) -> Sequence[PlannedStage]:
        """The plan that is followed; empty where a search decides as it goes."""
        return self._course.stages

    def hear(self, judged: Judgements) -> None:
        """What came of the requests."""
        self._course.hear(judged)

    def _begin(self, stage: PlannedStage, at_ns: int) -> None:
        told = dataclasses.asdict(stage)
        del told["spawn_rate_per_s"]
        told["has_pauses"] = self._has_pauses
        self._events.append(Event(at_ns=at_ns, event="stage", data=told))
        self._stage_begins(stage, at_ns)

    @property
    def is_complete(self) -> bool:
        """The plan was held to its end, or had none and went on until it was stopped."""
        return self._course.is_complete

    def gave_up(self, error: PlainError) -> None:
        """The row that tells the verdict why the plan was not followed to its end."""
        with contextlib.suppress(PlainError, OSError):  # a disk that is full takes no row of that either
            self.note("fault", {"reason": str(error), "exit_code": error.exit_code})

    def load_ended(self) -> None:
        """The load is not held any more; requests in flight may still finish."""
        if not self._ended:
            self._ended = True
            self.note("run_end", {"reason": self._course.end_reason})

    def close(self) -> None:
        """After the last request: ends the collector, then folds the rows. Raises PlainError or OSError."""
        end_process(self._collector)
        self.load_ended()
        state: RunState = "complete" if self.is_complete else "interrupted"
        self._events.sync()
        self._events.close()
        self.run.folder.write_manifest(dataclasses.replace(self.run.manifest, state=state))
        from loadtest.results import seal_all  # numpy costs a tenth of a second, and nothing waits now

        seal_all(self.run.folder)

    def note(self, event: EventKind, data: Mapping[str, str | int | float | bool | None]) -> None:
        """A row of the run as a whole. Raises RowFileError."""
        self._events.append(Event(at_ns=self._clock(), event=event, data=data))


def asked_stage(run: PreparedRun, users: int, spawn_rate_per_s: float, run_s: float | None) -> PlannedStage:
    """The one stage of a person who gave the number of users: held until told otherwise."""
    return PlannedStage(
        index=0,
        label=f"{users} users, as asked",
        users=users,
        hold_s=run_s or FOREVER_S,
        settle_s=run.scenario.settle_s + users / spawn_rate_per_s,
        spawn_rate_per_s=spawn_rate_per_s,
    )


def start_collector(run: PreparedRun) -> subprocess.Popen[bytes]:
    """A process of its own: asyncio and Locust's gevent do not share one. It ends with its stdin."""
    command = [sys.executable, "-m", "loadtest.collector.scrape", "--run-folder", str(run.folder.root)]
    command += ["--target", run.manifest.host, "--engine", run.manifest.engine]
    with run.folder.log_path("collector").open("wb") as log:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log)  # noqa: S603
