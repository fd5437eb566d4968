"""What a person may tell Locust about our part: the options under "Ullage" in its --help."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentTypeError, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from estimator.spec import EngineName
from loadtest.access import (
    API_KEY_NAME_VARIABLE,
    CA_FILE_VARIABLE,
    INSECURE_VARIABLE,
    NO_AUDIT_VARIABLE,
    PUBLIC_HOST_VARIABLE,
    USERS_CAP,
    USERS_CAP_VARIABLE,
    Access,
)
from loadtest.conductor.audit.preflight import audit_before_load
from loadtest.conductor.prepare import PreparedRun, RunRequest, open_prepared, prepare_run
from loadtest.origin import parse_origin
from loadtest.scenario import Scenario, ScenarioError, read_scenario, searching
from loadtest.telemetry import (
    GPU_METRICS_URL_VARIABLE,
    METRICS_URL_VARIABLE,
    PROMETHEUS_SELECTOR_VARIABLE,
    PROMETHEUS_VARIABLE,
    telemetry_of,
)

if TYPE_CHECKING:  # Locust patches the process that imports it
    from locust.argument_parser import LocustArgumentParser

EXPORTER_PORT: Final = 9099


def add_options(parser: LocustArgumentParser, engine: EngineName, scenario: Path) -> None:
    """`engine` and `scenario` are the locustfile's defaults."""
    group = parser.add_argument_group("Ullage", "What to send and where the rows go")
    group.add_argument("--scenario", default=str(scenario), env_var="ULLAGE_SCENARIO")
    group.add_argument("--model", default="", env_var="ULLAGE_MODEL", help="Served model name")
    group.add_argument("--engine", default=engine, choices=["vllm", "lmdeploy"], env_var="ULLAGE_ENGINE")
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
        choices=["auto", "stages", "search", "users"],
        help="The scenario's stages, a search for the limit, or the given users. auto: users if a number was "
        "given, else as the scenario says",
    )
    group.add_argument(
        "--exporter-host",
        default="127.0.0.1",
        env_var="ULLAGE_EXPORTER_HOST",
        help="Where our own metrics are served: loopback unless Prometheus is elsewhere",
    )
    group.add_argument(
        "--exporter-port",
        type=_port,
        default=str(EXPORTER_PORT),
        env_var="ULLAGE_EXPORTER_PORT",
        metavar="PORT",
        help=f"Our Prometheus metrics, on loopback. 0: a free port, '': none. Default: {EXPORTER_PORT}",
    )
    _add_telemetry_options(group)
    _add_access_options(group)


def _port(text: str) -> int | None:
    """None: no exporter."""
    if not text:
        return None
    if not text.isdecimal() or int(text) > 65535:
        raise ArgumentTypeError(f"{text!r} must be a port, 0 for a free one, or empty for none")
    return int(text)


def _add_telemetry_options(group: Any) -> None:
    group.add_argument(
        "--metrics-url",
        default="",
        env_var=METRICS_URL_VARIABLE,
        help="Metrics pages of all replicas behind the host, with commas between. Default: its /metrics",
    )
    group.add_argument(
        "--gpu-metrics-url",
        default="",
        env_var=GPU_METRICS_URL_VARIABLE,
        help="Pages of GPU exporters (DCGM, nvidia_gpu_exporter, AMD), with commas between",
    )
    group.add_argument(
        "--prometheus",
        default="",
        env_var=PROMETHEUS_VARIABLE,
        help="Base URL of a Prometheus that scrapes the server: it is asked, and no page is scraped",
    )
    group.add_argument(
        "--prometheus-selector",
        default="",
        env_var=PROMETHEUS_SELECTOR_VARIABLE,
        help="Label matchers of this run's servers there. Default: those that show the model",
    )


def _add_access_options(group: Any) -> None:
    """None of a group is in the web form: whoever sees the page cannot weaken what was said at the start."""
    group.add_argument(
        "--ca-file",
        default="",
        env_var=CA_FILE_VARIABLE,
        help="PEM file of the CA that signed the server's certificate",
    )
    group.add_argument(
        "--insecure",
        action="store_true",
        env_var=INSECURE_VARIABLE,
        help="Believe any certificate; nothing is signed off then",
    )
    group.add_argument(
        "--api-key-variable",
        default="",
        env_var=API_KEY_NAME_VARIABLE,
        help="Environment variable with the API key",
    )
    group.add_argument(
        "--allow-public-host",
        action="store_true",
        env_var=PUBLIC_HOST_VARIABLE,
        help="The server has a public address, and I may load it",
    )
    group.add_argument(
        "--users-cap",
        type=int,
        default=USERS_CAP,
        env_var=USERS_CAP_VARIABLE,
        help=f"Refuse more users at once. Default: {USERS_CAP}",
    )
    group.add_argument(
        "--no-audit",
        action="store_true",
        env_var=NO_AUDIT_VARIABLE,
        help="Start without looking at this machine and at one answer",
    )


def run_as_asked(options: Namespace, host: str, users: int | None) -> PreparedRun:
    """Opens the run folder that was named, or prepares a new one; `users` None means the stages.

    Raises PlainError when the run cannot start, and leaves no folder behind then.
    """
    if options.run_folder:
        return open_prepared(Path(options.run_folder))
    access = Access(
        ca_file=str(Path(options.ca_file).absolute()) if options.ca_file else None,
        insecure=options.insecure,
        api_key_variable=options.api_key_variable or None,
    )
    origin = parse_origin(host, access)
    if origin.warning is not None:
        print(f"ullage: {origin.warning}", file=sys.stderr, flush=True)
    return prepare_run(
        RunRequest(
            origin=origin,
            scenario=_scenario(options),
            engine=options.engine,
            runs_root=Path(options.runs_dir),
            model=options.model or None,
            max_num_seqs=options.max_num_seqs,
            users_max=users,
            processes=_processes(options),
            users_cap=options.users_cap,
            allow_public_host=options.allow_public_host,
            telemetry=telemetry_of(
                [options.metrics_url],
                [options.gpu_metrics_url],
                options.prometheus,
                options.prometheus_selector,
            ),
        ),
        audit=None if options.no_audit else audit_before_load,
    )


def _scenario(options: Namespace) -> Scenario:
    """As its file says, unless --load says otherwise. Raises ScenarioError."""
    scenario = read_scenario(Path(options.scenario))
    if options.load == "search":
        return searching(scenario)
    if options.load == "stages" and not scenario.stages:
        raise ScenarioError(f"--load stages, but {options.scenario} gives a search: add stages to it")
    return scenario


def _processes(options: Namespace) -> int:
    """Load processes there will be, as far as the options tell; -1 is one for each processor."""
    asked = options.processes or options.expect_workers or 1
    return int(asked) if asked > 0 else os.cpu_count() or 1
