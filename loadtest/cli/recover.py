"""`ullage recover`: seals what a run left behind whose processes died, and says what was lost."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import click

from loadtest.reporter.cohort import outcomes_of
from loadtest.results import finalise
from loadtest.row_file import is_locked
from loadtest.run_folder import RunFolder, RunFolderError

EXIT_DAMAGED = 1


@click.command()
@click.argument("run_folder", type=click.Path(path_type=Path))
def recover(run_folder: Path) -> None:
    """Seal the rows of a dead run in RUN_FOLDER. May be repeated; nothing that was whole is lost.

    Exit code 0: every row that was acknowledged is there. 1: lines were damaged on the disk, and their rows
    are lost. 2: this is no run folder, it is still being written, or a sealed file is damaged.
    """
    folder = RunFolder.open(run_folder)
    rows = finalise(folder)
    damage = rows.damage
    busy = [text for text in folder.text_segments() if is_locked(text)]
    if busy:
        raise RunFolderError(f"{busy[0]} is still being written: end the run's processes first")
    manifest = folder.read_manifest()
    if manifest.state == "running":
        folder.write_manifest(dataclasses.replace(manifest, state="interrupted"))
    lost = outcomes_of(rows.requests).get("client_lost", 0)
    click.echo(
        f"{len(rows.requests):,} requests, {len(rows.samples):,} samples and {len(rows.events):,} events "
        f"in {len(folder.sealed_segments())} sealed segments\n"
        f"in flight when their worker ended (client_lost): {lost:,}\n"
        f"half-written last lines (never acknowledged): {damage.torn_tails}\n"
        f"damaged lines (rows lost): {damage.bad_lines}\n"
        f"report: ullage report {folder.root}"
    )
    sys.exit(EXIT_DAMAGED if damage.bad_lines else 0)
