"""The only listener on Locust's events: options in, a run opened and closed, every load process given a desk.

The process that decides the load (single, or master) opens the run at the first tick of the ramp and tells
the workers where it is. Files, sockets and threads are opened then, never before Locust has forked.
"""

from __future__ import annotations

import gc
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any, Final

from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.event import Events
from locust.runners import MasterRunner, Runner, WorkerRunner

from estimator.errors import PlainError
from estimator.spec import EngineName
from loadtest.conductor.load_run import LoadRun, asked_stage
from loadtest.conductor.plan import Target
from loadtest.conductor.prepare import PreparedRun, RunRequest, open_prepared, prepare_run
from loadtest.conductor.ramp import ScenarioRamp
from loadtest.conductor.station import Station
from loadtest.origin import parse_origin
from loadtest.scenario import read_scenario

RUN_MESSAGE: Final = "ullage-run"
DRAIN_S_MAX: Final = 60.0
FORM_USERS: Final = 1
"""What Locust's form shows before a person types: not a number anybody asked for."""


def install(events: Events, engine: EngineName) -> None:
    """Called once by a locustfile; `engine` is what it is meant for, --engine may still say otherwise."""
    hooks = Hooks(engine)
    events.init_command_line_parser.add_listener(hooks.add_options)
    events.init.add_listener(hooks.locust_started)
    events.worker_connect.add_listener(hooks.worker_connected)
    events.test_stopping.add_listener(hooks.load_ends)
    events.test_stop.add_listener(hooks.load_ended)


class Hooks:
    """One a process. `_lead` exists where the load is decided, `_station` where users live."""

    def __init__(self, engine: EngineName) -> None:
        self._engine = engine
        self._environment: Environment
        self._asked_users: int | None = None
        self._lead: LoadRun | None = None
        self._station: Station | None = None
        self._workers: list[str] = []
        self._asked = False

    def add_options(self, parser: LocustArgumentParser, **_: Any) -> None:
        default = Path(__file__).parents[2] / "configs/scenarios/qwen-chat.yaml"
        group = parser.add_argument_group("Ullage", "What to send and where the rows go")
        group.add_argument("--scenario", default=str(default), env_var="ULLAGE_SCENARIO")
        group.add_argument("--model", default="", env_var="ULLAGE_MODEL", help="Served model name")
        group.add_argument("--engine", default=self._engine, choices=["vllm", "lmdeploy"])
        group.add_argument("--max-num-seqs", type=int, default=None, help="The server's own limit, if known")
        group.add_argument("--runs-dir", default="runs", env_var="ULLAGE_RUNS_DIR")
        group.add_argument("--run-folder", default="", help="A run that was prepared before")
        group.add_argument(
            "--load",
            default="auto",
            choices=["auto", "stages", "users"],
            help="The scenario's stages or the given users. auto: users if a number was given",
        )

    def locust_started(self, environment: Environment, runner: Runner | None, **_: Any) -> None:
        self._environment = environment
        if environment.parsed_options is not None:
            self._asked_users = environment.parsed_options.num_users
        if isinstance(runner, WorkerRunner):
            runner.register_message(RUN_MESSAGE, self._run_announced)
        elif isinstance(environment.shape_class, ScenarioRamp):
            environment.shape_class.lead = self

    def worker_connected(self, client_id: str, **_: Any) -> None:
        self._workers.append(client_id)
        if self._lead is not None:
            self._announce(self._lead.run, client_id)

    def begin(self) -> bool:
        """Opens the run; False when it cannot start and the sentence was shown."""
        options, runner = self._environment.parsed_options, self._environment.runner
        assert options is not None
        assert runner is not None
        try:
            run = self._prepared(options)
            stages = run.manifest.stages
            if self._asked:
                rate = float(options.spawn_rate or run.scenario.spawn_rate_per_s)
                stages = (asked_stage(run, options.num_users, rate, options.run_time),)
            self._lead = LoadRun(run, stages)
            if isinstance(runner, MasterRunner):
                for client_id in self._workers:
                    self._announce(run, client_id)
            else:
                self._station = Station(run, worker=0, runner=runner)
        except PlainError as error:
            print(f"ullage: {error}", file=sys.stderr, flush=True)
            self._environment.process_exit_code = error.exit_code
            return False
        drain_s = min(run.scenario.timeouts.total_s, DRAIN_S_MAX)
        self._environment.stop_timeout = max(self._environment.stop_timeout or 0.0, drain_s)
        gc.freeze()  # what is alive now stays alive: the collector need not look at it again
        return True

    def target(self, elapsed_s: float) -> Target | None:
        return None if self._lead is None else self._lead.target(elapsed_s)

    def load_ends(self, **_: Any) -> None:
        if self._lead is not None:
            self._lead.load_ended("plan complete" if self._plan_complete else "stopped")

    def load_ended(self, **_: Any) -> None:
        """After the last request of this process."""
        if self._station is not None:
            self._station.close()
            self._station = None
        if self._lead is not None:
            lead, self._lead = self._lead, None
            lead.close("complete" if self._plan_complete or lead.plan_is_over else "interrupted")
            root = lead.run.folder.root
            print(f"rows are in {root}; make the report with: ullage report {root}", flush=True)

    @property
    def _plan_complete(self) -> bool:
        return self._asked or (self._lead is not None and self._lead.plan_is_over)

    def _prepared(self, options: Namespace) -> PreparedRun:
        self._asked = self._users_were_asked_for(options)
        if options.run_folder:
            return open_prepared(Path(options.run_folder))
        return prepare_run(
            RunRequest(
                origin=parse_origin(self._environment.host or ""),
                scenario=read_scenario(Path(options.scenario)),
                engine=options.engine,
                runs_root=Path(options.runs_dir),
                model=options.model or None,
                max_num_seqs=options.max_num_seqs,
                users_max=options.num_users if self._asked else None,
            )
        )

    def _users_were_asked_for(self, options: Namespace) -> bool:
        if options.load != "auto":
            return bool(options.load == "users")
        from_form = not options.headless and (options.num_users or FORM_USERS) != FORM_USERS
        return self._asked_users is not None or from_form

    def _announce(self, run: PreparedRun, client_id: str) -> None:
        runner = self._environment.runner
        assert isinstance(runner, MasterRunner)
        message = {"folder": str(run.folder.root.resolve()), "worker": self._workers.index(client_id)}
        runner.send_message(RUN_MESSAGE, message, client_id=client_id)

    def _run_announced(self, environment: Environment, msg: Any, **_: Any) -> None:
        """In a worker: the master has opened a run."""
        assert environment.runner is not None
        run = open_prepared(Path(msg.data["folder"]))
        self._station = Station(run, worker=int(msg.data["worker"]), runner=environment.runner)
