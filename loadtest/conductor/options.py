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
from loadtest.conductor.prepare import Audit, PreparedRun, RunRequest, open_prepared, prepare_run
from loadtest.origin import parse_origin
from loadtest.scenario import (
    LimitsAsked,
    Scenario,
    ScenarioError,
    SoakAsked,
    read_scenario,
    searching,
    soaking,
)
from loadtest.scenario.reading import counted_with
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
    group.add_argument(
        "--tokenizer",
        default="",
        env_var="ULLAGE_TOKENIZER",
        help="A model's folder or tokenizer.json that counts in place of the server (ullage[tokenizers])",
    )
    group.add_argument("--runs-dir", default="runs", env_var="ULLAGE_RUNS_DIR")
    group.add_argument(
        "--run-folder", default="", env_var="ULLAGE_RUN_FOLDER", help="A run that was prepared before"
    )
    group.add_argument(
        "--load",
        default="auto",
        choices=["auto", "stages", "search", "soak", "users"],
        help="The scenario's stages, a search for the limit, a soak of the given users, or just the given "
        "users. auto: users if a number was given, else as the scenario says",
    )
    group.add_argument(
        "--soak-hours",
        type=float,
        default=4.0,
        env_var="ULLAGE_SOAK_HOURS",
        help="Of --load soak. Default: 4",
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
    _add_limit_options(group)
    _add_telemetry_options(group)
    _add_access_options(group)


def _port(text: str) -> int | None:
    """None: no exporter."""
    if not text:
        return None
    if not text.isdecimal() or int(text) > 65535:
        raise ArgumentTypeError(f"{text!r} must be a port, 0 for a free one, or empty for none")
    return int(text)


def _add_limit_options(group: Any) -> None:
    """Each over what the scenario says of it; as for `ullage signoff`."""
    group.add_argument(
        "--goodput",
        nargs="+",
        default=[],
        metavar="KEY:MS",
        env_var="ULLAGE_GOODPUT",
        help="Limits in milliseconds, as in vllm bench serve: ttft:2000 tpot:50 e2el:30000",
    )
    for flag, says in {
        "--percentile": "Of requests that must keep every limit: 95",
        "--confidence": "With which the signed level is proven: 0.95",
        "--error-budget": "Share of requests that may fail: 0.01",
        "--max-preemptions": "The most in 100 requests; above, a level does not hold",
    }.items():
        variable = f"ULLAGE_{flag.strip('-').replace('-', '_').upper()}"
        group.add_argument(flag, type=float, default=None, env_var=variable, help=says)


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
        audit=None if options.no_audit else _audit(),
    )


def _audit() -> Audit:
    from loadtest.conductor.audit.preflight import audit_before_load  # nobody else waits for it

    return audit_before_load


def _scenario(options: Namespace) -> Scenario:
    """As its file says, unless --load or a limit says otherwise. Raises ScenarioError."""
    asked = LimitsAsked(
        goodput=tuple(options.goodput),
        percentile=options.percentile,
        confidence=options.confidence,
        error_budget=options.error_budget,
        max_preemptions=options.max_preemptions,
    )
    scenario = counted_with(read_scenario(Path(options.scenario), asked), options.tokenizer or None)
    if options.load == "search":
        return searching(scenario)
    if options.load == "soak":
        if not options.num_users:
            raise ScenarioError("--load soak holds a number of users: give one with -u")
        return soaking(scenario, SoakAsked(users=options.num_users, hours=options.soak_hours))
    if options.load == "stages" and not scenario.stages:
        raise ScenarioError(f"--load stages, but {options.scenario} gives a search: add stages to it")
    return scenario


def _processes(options: Namespace) -> int:
    """Load processes there will be, as far as the options tell; -1 is one for each processor."""
    asked = options.processes or options.expect_workers or 1
    return int(asked) if asked > 0 else os.cpu_count() or 1
