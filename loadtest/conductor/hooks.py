"""The only listener on Locust's events: options in, a run opened and closed, every load process given a desk.

The process that decides the load (single, or master) opens the run at the first tick of the ramp and tells
the workers where it is. Files, sockets and threads are opened then, never before Locust has forked.
"""

from __future__ import annotations

import gc
import signal
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any, Final

import gevent
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.event import Events
from locust.runners import MasterRunner, Runner, WorkerRunner

from estimator.errors import EXIT_USAGE, PlainError
from estimator.spec import EngineName
from loadtest.conductor.crew import Crew, Member
from loadtest.conductor.load_run import LoadRun, asked_stage
from loadtest.conductor.plan import Target
from loadtest.conductor.prepare import PreparedRun, RunRequest, open_prepared, prepare_run
from loadtest.conductor.ramp import ScenarioRamp
from loadtest.conductor.station import Station
from loadtest.conductor.tokenizer import chat_words
from loadtest.origin import parse_origin
from loadtest.scenario import read_scenario

SCENARIOS: Final = Path(__file__).parents[2] / "configs/scenarios"
DRAIN_S_MAX: Final = 60.0
FORM_USERS: Final = 1
"""What Locust's form shows before a person types: not a number anybody asked for."""


def install(events: Events, engine: EngineName, scenario: str = "qwen-chat") -> None:
    """Called once by a locustfile, which names its defaults: --engine and --scenario may say otherwise."""
    hooks = Hooks(engine, SCENARIOS / f"{scenario}.yaml")
    events.init_command_line_parser.add_listener(hooks.add_options)
    events.init.add_listener(hooks.locust_started)
    events.worker_connect.add_listener(hooks.worker_connected)
    events.test_stopping.add_listener(hooks.load_ends)
    events.test_stop.add_listener(hooks.load_ended)


class Hooks:
    """One a process. `_lead` exists where the load is decided, `_station` where users live."""

    def __init__(self, engine: EngineName, scenario: Path) -> None:
        self._engine = engine
        self._scenario = scenario
        self._environment: Environment
        self._asked_users: int | None = None
        self._asked_stop_timeout_s = 0.0
        self._asked = False
        self._draining = False
        self._lead: LoadRun | None = None
        self._station: Station | None = None
        self._crew: Crew | None = None
        self._member: Member | None = None

    def add_options(self, parser: LocustArgumentParser, **_: Any) -> None:
        group = parser.add_argument_group("Ullage", "What to send and where the rows go")
        group.add_argument("--scenario", default=str(self._scenario), env_var="ULLAGE_SCENARIO")
        group.add_argument("--model", default="", env_var="ULLAGE_MODEL", help="Served model name")
        group.add_argument(
            "--engine", default=self._engine, choices=["vllm", "lmdeploy"], env_var="ULLAGE_ENGINE"
        )
        group.add_argument(
            "--max-num-seqs",
            type=int,
            default=None,
            env_var="ULLAGE_MAX_NUM_SEQS",
            help="The server's own limit, if known",
        )
        group.add_argument("--runs-dir", default="runs", env_var="ULLAGE_RUNS_DIR")
        group.add_argument(
            "--run-folder", default="", env_var="ULLAGE_RUN_FOLDER", help="A run that was prepared before"
        )
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
        self._asked_stop_timeout_s = environment.stop_timeout or 0.0
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, _interrupt_main)
        if isinstance(runner, WorkerRunner):
            self._member = Member(runner, opened=self._take_station, stops=self._stops_as_told)
            return
        if isinstance(runner, MasterRunner):
            self._crew = Crew(runner, give_up=self._give_up)
        if isinstance(environment.shape_class, ScenarioRamp):
            environment.shape_class.lead = self

    def worker_connected(self, client_id: str, **_: Any) -> None:
        if self._crew is not None:
            self._crew.joined(client_id)

    @property
    def is_open(self) -> bool:
        return self._lead is not None

    def begin(self) -> bool:
        """Opens the run; False when it cannot start and the sentence was shown."""
        options, runner = self._environment.parsed_options, self._environment.runner
        assert options is not None
        assert runner is not None
        self._environment.process_exit_code = None
        try:
            run = self._prepared(options)
            stages = run.manifest.stages
            if self._asked:
                rate = float(options.spawn_rate or run.scenario.spawn_rate_per_s)
                stages = (asked_stage(run, options.num_users, rate, options.run_time),)
            words = chat_words(run)
            if self._crew is None:
                self._station = Station(run, 0, words, runner, self._give_up)
            self._lead = LoadRun(run, stages)
            if self._crew is not None:
                self._crew.open(run, words)
        except PlainError as error:
            self._complain(str(error), error.exit_code)
            return False
        self._draining = False
        # a ramp down waits for its users' answers; only a run that is broken off cancels them
        drain_s = min(run.scenario.timeouts.total_s, DRAIN_S_MAX)
        self._environment.stop_timeout = max(self._asked_stop_timeout_s, drain_s)
        gc.freeze()  # what is alive now stays alive: the collector need not look at it again
        return True

    def target(self, elapsed_s: float) -> Target | None:
        options = self._environment.parsed_options
        run_s = None if options is None else options.run_time
        if self._lead is None or (run_s and elapsed_s >= run_s and not self._asked):
            return None  # -t without -u cuts the scenario's stages short
        try:
            target = self._lead.target(elapsed_s)
        except PlainError as error:
            self._complain(str(error), error.exit_code)
            return None
        self._draining = target is None
        return target

    def load_ends(self, **_: Any) -> None:
        """Before Locust stops the users of this process, or of the crew."""
        if self._lead is not None:
            self._lead.load_ended()
        if self._station is not None:
            self._station.turn_away()
        if not self._draining:
            self._environment.stop_timeout = self._asked_stop_timeout_s
        if self._crew is not None:
            # Locust's master says that a test has stopped while its workers still run
            self._crew.stop(drain=self._draining, timeout_s=self._environment.stop_timeout)

    def load_ended(self, **_: Any) -> None:
        """After the last request."""
        station, self._station = self._station, None
        lead, self._lead = self._lead, None
        try:
            if station is not None:
                station.close()
            if lead is not None:
                lead.close()
        except (PlainError, OSError) as error:
            self._complain(f"the end of the run could not be written: {error}", EXIT_USAGE)
        if self._member is not None:
            self._member.rows_closed()
        if lead is not None:
            root = lead.run.folder.root
            print(f"rows are in {root}; make the report with: ullage report {root}", flush=True)

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

    def _take_station(self, run: PreparedRun, worker: int, words: Any, member: Member) -> None:
        """In a worker: the master has opened a run."""
        if self._station is None:
            self._draining = False
            self._station = Station(run, worker, words, member.runner, member.give_up)

    def _stops_as_told(self, drain: bool) -> None:
        self._draining = drain

    def _give_up(self, sentence: str) -> None:
        """The load cannot go on; where a web page is shown, that stays."""
        runner, options = self._environment.runner, self._environment.parsed_options
        if self._environment.process_exit_code is None and runner is not None:
            self._complain(sentence, EXIT_USAGE)
            gevent.spawn(runner.quit if options is None or options.headless else runner.stop)

    def _complain(self, sentence: str, exit_code: int) -> None:
        print(f"ullage: {sentence}", file=sys.stderr, flush=True)
        self._environment.process_exit_code = exit_code


def _interrupt_main(*_: Any) -> None:
    """Ctrl-C goes to Locust's main greenlet, which stops the load; Python would hit whichever user runs."""
    hub = gevent.get_hub()
    if gevent.getcurrent() is hub.parent:
        raise KeyboardInterrupt
    hub.loop.run_callback_threadsafe(hub.parent.throw, KeyboardInterrupt)
