"""`ullage report`: makes the report of a run again, from its rows."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from loadtest.reporter.report import report_run
from loadtest.run_folder import RunFolder


@click.command()
@click.argument("run_folder", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print report.json instead of its lines.")
def report(run_folder: Path, as_json: bool) -> None:
    """Makes the report of RUN_FOLDER from its rows; the exit code is the verdict's."""
    folder = RunFolder.open(run_folder)
    made = report_run(folder)
    lines = "\n".join(made.lines)
    click.echo(folder.report_path("json").read_text(encoding="utf-8") if as_json else lines)
    sys.exit(made.exit_code)
