"""`ullage calibrate`: what a step of a running server costs, from a minute of light load."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from estimator.spec import SpecError
from estimator.twin.cost_file import KeptFor, MeasuredCost, cost_path, write_cost
from estimator.twin.kept_cost import kept_path
from loadtest.access import require_consent
from loadtest.cli.access_flags import access_flags, allow_public_host_flag, origin_from
from loadtest.cli.answers import estimate_from, minor
from loadtest.cli.engine_flags import engine_flags
from loadtest.conductor.calibrate import CalibrationRequest, calibrate_server
from loadtest.named_server import is_simulated
from loadtest.origin import read_api_key
from loadtest.reporter.cost_text import cost_lines
from loadtest.run_folder import RunFolder


@click.command()
@click.option("--host", help="Base URL of the running server.")
@click.option(
    "--from-run",
    type=click.Path(path_type=Path),
    help="Instead of a server: keep what this finished run of one shows.",
)
@click.option(
    "--model-config", help="With --gpu and the server's flags: `ullage predict` then takes it by itself."
)
@engine_flags
@click.option("--model", help="Served model name; needed only when the server serves several.")
@click.option(
    "--output", type=click.Path(path_type=Path), help="Where to keep it instead of the user's data folder."
)
@access_flags
@allow_public_host_flag
@click.option("--json", "as_json", is_flag=True, help="Print the cost as JSON.")
def calibrate(host: str | None, output: Path | None, as_json: bool, **options: Any) -> None:
    """Measure what a step costs, for `ullage predict` and `ullage twin`. The server should be idle."""
    if (host is None) == (options["from_run"] is None):
        raise SpecError("give --host of a running server, or --from-run with the folder of a finished run")
    if host is None:
        _from_run(options["from_run"])
        return
    server, engine = _named(options), options["engine"]
    origin = origin_from(host, options)
    require_consent(origin.host, allowed=options["allow_public_host"])
    request = CalibrationRequest(
        origin=origin,
        key=read_api_key(variable=origin.access.api_key_variable),
        engine=engine,
        model=options["model"],
        max_num_seqs=options["max_num_seqs"],
    )
    done = calibrate_server(request, datetime.now(UTC), say=lambda line: click.echo(line, err=True))
    measured = replace(done.measured, kept_for=_of_version(server, done.measured.version))
    path = output or _place(measured)
    write_cost(path, measured)
    if as_json:
        click.echo(json.dumps(asdict(measured), indent=2))
    else:
        click.echo("\n".join(cost_lines(done.measured.cost, done.steps)))
    click.echo(f"kept in {path}", err=True)
    if measured.kept_for is None:
        click.echo("it names no GPU: with --model-config and --gpu, predict takes it by itself", err=True)


def _named(options: Mapping[str, Any]) -> KeptFor | None:
    """Which server it is, where a person says so."""
    if (options["model_config"] is None) != (options["gpu"] is None):
        raise SpecError("give both --model-config and --gpu, and the server's flags, or neither")
    if options["gpu"] is None:
        return None
    from loadtest.cli.keeping import cost_key

    return cost_key(estimate_from(options["model_config"], {**options, "no_calibration": True}, None), None)


def _of_version(server: KeptFor | None, version: str | None) -> KeptFor | None:
    """A simulated server is not the one that was named."""
    if server is None or version is None:
        return server
    return None if is_simulated(None, {"server": version}) else replace(server, version=minor(version))


def _place(measured: MeasuredCost) -> Path:
    if measured.kept_for is None:
        return cost_path(measured.model, measured.engine)
    return kept_path(measured.kept_for)


def _from_run(root: Path) -> None:
    from loadtest.cli.keeping import keep
    from loadtest.reporter.report import judge_run

    folder = RunFolder.open(root)
    click.echo("\n".join(keep(folder.read_manifest(), judge_run(folder), datetime.now(UTC))))
