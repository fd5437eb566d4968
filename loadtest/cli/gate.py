"""`ullage gate`: a run against a baseline that is kept in the repository, for CI."""

from __future__ import annotations

from pathlib import Path

import click

from loadtest.cli.compare import PATH, answer_with, comparison_flags, snapshot_of


@click.command()
@click.argument("run_folder", type=PATH)
@click.option("--baseline", type=PATH, required=True, help="The JSON file to compare with, or to write.")
@click.option("--write-baseline", is_flag=True, help="Keep this run's figures as the baseline.")
@comparison_flags
def gate(
    run_folder: Path,
    baseline: Path,
    write_baseline: bool,
    tolerance: float,
    allow_different: bool,
    as_json: bool,
) -> None:
    """Compare RUN_FOLDER with the figures kept in --baseline; fails when something became worse.

    Exit code 0: nothing is worse by more than the tolerance. 1: something is, and it is no noise. 4: it
    cannot be told. 2: the workloads differ, or there is no baseline.
    """
    from loadtest.reporter import baseline as kept
    from loadtest.reporter.comparison import compare

    run = snapshot_of(run_folder)
    if write_baseline:
        kept.write_baseline(baseline, run)
        click.echo(f"{baseline}: N_safe {run.n_safe.value:g} ({run.status}) of {run.run_id} is the baseline")
        return
    found = compare(kept.read_baseline(baseline), run, tolerance=tolerance / 100)
    answer_with(found, allow_different=allow_different, as_json=as_json)
