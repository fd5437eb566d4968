"""`ullage report`: makes the report of a run again, from its rows."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from loadtest.reporter.lines import five_lines
from loadtest.reporter.report import write_report
from loadtest.run_folder import RunFolder


@click.command()
@click.argument("run_folder", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print report.json instead of the five lines.")
def report(run_folder: Path, as_json: bool) -> None:
    """Makes the report of RUN_FOLDER from its rows; the exit code is the verdict's."""
    folder = RunFolder.open(run_folder)
    verdict = write_report(folder)
    lines = "\n".join(five_lines(verdict, str(folder.report_path("html"))))
    click.echo(folder.report_path("json").read_text(encoding="utf-8") if as_json else lines)
    sys.exit(verdict.exit_code)
