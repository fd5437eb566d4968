"""The only listener on Locust's events: tells the leader, or the worker's member, what Locust does.

Files, sockets and threads are opened at the first tick of the ramp, never before Locust has forked.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import gevent
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.event import Events
from locust.runners import MasterRunner, Runner, WorkerRunner

from estimator.catalog import configs_folder
from estimator.spec import EngineName
from loadtest.conductor.interrupts import heed_interrupts
from loadtest.conductor.leader import Leader
from loadtest.conductor.live.metrics_server import MetricsServer
from loadtest.conductor.live.otlp_process import OtlpProcess
from loadtest.conductor.options import add_options
from loadtest.conductor.ramp import ScenarioRamp
from loadtest.conductor.station import OwnUsers
from loadtest.conductor.stop_signals import supervisor_pid

if TYPE_CHECKING:  # what only some processes need is imported there: the first request waits for all of it
    from loadtest.conductor.member import Member


def install(events: Events, engine: EngineName, scenario: str = "qwen-chat") -> None:
    """Called once by a locustfile, which names its defaults: --engine and --scenario may say otherwise."""

    def options_are_made(parser: LocustArgumentParser, **_: Any) -> None:
        add_options(parser, engine, configs_folder() / "scenarios" / f"{scenario}.yaml")

    def locust_starts(environment: Environment, runner: Runner | None, **_: Any) -> None:
        # Locust's --run-time would count from before the imports: the loop's clock stood still meanwhile
        gevent.get_hub().loop.update_now()
        if runner is not None and environment.parsed_options is not None:
            heed_interrupts()
            _take_part(events, environment, runner)

    events.init_command_line_parser.add_listener(options_are_made)
    events.init.add_listener(locust_starts)


def _take_part(events: Events, environment: Environment, runner: Runner) -> None:
    """Gives this process its part in the runs to come."""
    part: Leader | Member
    if isinstance(runner, WorkerRunner):
        from loadtest.conductor.member import Member

        part = Member(runner, is_forked=bool(environment.parsed_options.processes))  # type: ignore[union-attr]
    else:
        part = _leader(events, environment, runner)
        ScenarioRamp.lead = part
        events.test_start.add_listener(lambda **_: part.test_starts())
        events.quitting.add_listener(lambda **_: part.quitting())
        _show(events, environment, part)
    events.test_stopping.add_listener(lambda **_: part.load_ends())
    events.test_stop.add_listener(lambda **_: part.load_ended())


def _leader(events: Events, environment: Environment, runner: Runner) -> Leader:
    leader = Leader(environment, runner)
    if isinstance(runner, MasterRunner):
        from loadtest.conductor.crew import Crew

        crew = leader.hands = Crew(runner, leader.give_up, leader.hear, leader)
        events.worker_connect.add_listener(lambda client_id, **_: crew.joined(client_id))
    else:
        leader.hands = OwnUsers(runner, leader.give_up, leader.hear)
    if (supervisor := supervisor_pid()) is not None:
        runner.greenlet.spawn(leader.end_with, supervisor)
    return leader


def _show(events: Events, environment: Environment, leader: Leader) -> None:
    """To Prometheus, and on Locust's page where there is one."""
    options = environment.parsed_options
    assert options is not None
    if environment.web_ui is not None:
        from loadtest.conductor.live.capacity_tab import add_capacity_tab  # a worker needs none of it

        add_capacity_tab(environment.web_ui, leader.standing, options.web_base_path)
    server: MetricsServer | None = None
    if options.exporter_port is not None:
        server = MetricsServer(leader.standing, options.exporter_host, options.exporter_port)
    sender = OtlpProcess(os.environ, None if server is None else server.url)

    def quits(**_: Any) -> None:
        sender.stop()  # it looks at the page once more
        if server is not None:
            server.stop()

    events.quitting.add_listener(quits)
