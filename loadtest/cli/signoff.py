"""`ullage signoff`: predict, load, observe and sign in one run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from loadtest.conductor.signoff import SignoffRequest, sign_off
from loadtest.reporter.lines import five_lines
from loadtest.reporter.report import write_report
from loadtest.scenario import read_scenario

PATH = click.Path(path_type=Path)


@click.command()
@click.option("--scenario", type=PATH, required=True, help="What to send, how much, and what is good.")
@click.option("--host", help="Base URL of the server; without it a simulated one stands in.")
@click.option("--engine", type=click.Choice(["vllm", "lmdeploy"]), default="vllm", show_default=True)
@click.option("--model", help="Served model name; needed only when the server serves several.")
@click.option(
    "--max-num-seqs", type=click.IntRange(min=1), help="The server's own limit of requests at once."
)
@click.option("--processes", type=click.IntRange(min=1), default=1, show_default=True, help="Load workers.")
@click.option("--runs-dir", "runs_root", type=PATH, default=Path("runs"), show_default=True)
def signoff(scenario: Path, **options: Any) -> None:
    """Predict, load, observe and sign, in one run."""
    request = SignoffRequest(scenario=read_scenario(scenario), pool=None, **options)
    folder = sign_off(request, say=lambda line: click.echo(line, err=True))
    verdict = write_report(folder)
    click.echo("\n".join(five_lines(verdict, str(folder.report_path("html")))))
    sys.exit(verdict.exit_code)
