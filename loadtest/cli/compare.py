"""`ullage compare`: two runs of one workload, what differs, and whether it is more than noise."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from estimator.errors import PlainError

if TYPE_CHECKING:
    from loadtest.reporter.comparison import Comparison
    from loadtest.reporter.snapshot import Snapshot

PATH = click.Path(path_type=Path)


def comparison_flags(command: Any) -> Any:
    """What `ullage compare` and `ullage gate` are asked alike."""
    for flag in (
        click.option("--json", "as_json", is_flag=True, help="For machines."),
        click.option("--allow-different", is_flag=True, help="Compare even if the workloads differ."),
        click.option(
            "--tolerance",
            type=click.FloatRange(0, 100),
            default=5.0,
            show_default=True,
            help="Percent by which a figure may be worse.",
        ),
    ):
        command = flag(command)
    return command


@click.command()
@click.argument("old", type=PATH)
@click.argument("new", type=PATH)
@comparison_flags
def compare(old: Path, new: Path, tolerance: float, allow_different: bool, as_json: bool) -> None:
    """Compare the run folder NEW with OLD: limits, throughput and latencies at each common concurrency.

    Exit code 0: nothing is worse by more than the tolerance. 1: something is, and it is no noise. 4: it
    cannot be told. 2: the workloads differ.
    """
    from loadtest.reporter.comparison import compare as compared

    found = compared(snapshot_of(old), snapshot_of(new), tolerance=tolerance / 100)
    answer_with(found, allow_different=allow_different, as_json=as_json)


def snapshot_of(run_folder: Path) -> Snapshot:
    """The run's figures, from its rows; nothing in the folder changes. Raises RunFolderError."""
    from loadtest.reporter.saturation import observe
    from loadtest.reporter.snapshot import snapshot
    from loadtest.reporter.verdict import judge
    from loadtest.results import load_results
    from loadtest.run_folder import RunFolder

    folder = RunFolder.open(run_folder)
    manifest, prediction, rows = folder.read_manifest(), folder.read_prediction(), load_results(folder)
    observation = observe(
        rows, manifest, None if prediction is None else prediction.n_slots, folder.read_search()
    )
    return snapshot(rows.requests, manifest, judge(prediction, observation))


def answer_with(found: Comparison, *, allow_different: bool, as_json: bool) -> None:
    """Prints the comparison and ends the command with its exit code. Raises PlainError."""
    from loadtest.reporter.comparison_text import comparison_dict, comparison_text

    apart = [one for one in found.differences if one.is_workload]
    if apart and not allow_different:
        named = "; ".join(f"{one.what}: {one.old} -> {one.new}" for one in apart)
        raise PlainError(f"the workloads differ ({named}): repeat the run, or add --allow-different")
    click.echo(json.dumps(comparison_dict(found), indent=2) if as_json else comparison_text(found))
    sys.exit(found.exit_code)
