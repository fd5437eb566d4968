"""`ullage calibrate`: what a step of a running server costs, from a minute of light load."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from estimator.spec import EngineName
from estimator.twin.cost_file import cost_path, write_cost
from loadtest.access import require_consent
from loadtest.cli.access_flags import access_flags, allow_public_host_flag, origin_from
from loadtest.conductor.calibrate import CalibrationRequest, calibrate_server
from loadtest.origin import read_api_key
from loadtest.reporter.cost_text import cost_lines


@click.command()
@click.option("--host", required=True, help="Base URL of the running server.")
@click.option("--engine", type=click.Choice(["vllm", "lmdeploy"]), default="vllm", show_default=True)
@click.option("--model", help="Served model name; needed only when the server serves several.")
@click.option(
    "--max-num-seqs", type=click.IntRange(min=1), help="The server's slots, if it has fewer than 32."
)
@click.option(
    "--output", type=click.Path(path_type=Path), help="Where to keep it instead of the user's data folder."
)
@access_flags
@allow_public_host_flag
@click.option("--json", "as_json", is_flag=True, help="Print the cost as JSON.")
def calibrate(host: str, engine: EngineName, output: Path | None, as_json: bool, **options: Any) -> None:
    """Measure what a step costs, for `ullage predict` and `ullage twin`. The server should be idle."""
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
    path = output or cost_path(done.measured.model, done.measured.engine)
    write_cost(path, done.measured)
    if as_json:
        click.echo(json.dumps(asdict(done.measured), indent=2))
    else:
        click.echo("\n".join(cost_lines(done.measured.cost, done.steps)))
    click.echo(f"kept in {path}", err=True)
