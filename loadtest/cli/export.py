"""`ullage export`: the requests of a run in the formats of other tools."""

from __future__ import annotations

from pathlib import Path

import click

from estimator.errors import PlainError
from loadtest.exports import write_csv, write_parquet, write_sqlite
from loadtest.reporter.stages import windows
from loadtest.results import RunRows, load_results
from loadtest.row_file import Damage
from loadtest.run_folder import RunFolder, replace_file
from loadtest.vllm_bench import Scope, bench_block, bench_json, bench_result

FILE = click.Path(path_type=Path, dir_okay=False)
WRITERS = {"csv": write_csv, "parquet": write_parquet, "sqlite": write_sqlite}


@click.command()
@click.argument("run_folder", type=click.Path(path_type=Path))
@click.option("--csv", type=FILE, help="One line a request.")
@click.option("--parquet", type=FILE, help="One row a request; needs the extra: ullage[parquet].")
@click.option("--sqlite", type=FILE, help="One table, requests, to be asked in SQL.")
@click.option("--vllm-bench", type=FILE, help="The JSON of `vllm bench serve`; prints its console block too.")
@click.option("--stage", type=click.IntRange(min=1), help="With --vllm-bench: this stage only, from 1.")
def export(run_folder: Path, vllm_bench: Path | None, stage: int | None, **files: Path | None) -> None:
    """Write the requests of RUN_FOLDER to the files named; at least one. Nothing in the folder changes."""
    wanted = {name: path for name, path in files.items() if path is not None}
    if not wanted and vllm_bench is None:
        raise PlainError("name a file: --csv, --parquet, --sqlite or --vllm-bench")
    folder = RunFolder.open(run_folder)
    rows = load_results(folder)
    for name, path in wanted.items():
        WRITERS[name](rows.requests, path)
        click.echo(f"{len(rows.requests):,} requests in {path}", err=True)
    if vllm_bench is not None:
        streams = folder.stream_counts(Damage())
        result = bench_result(rows.requests, streams, folder.read_manifest(), _scope(rows, stage))
        replace_file(vllm_bench, bench_json(result))
        click.echo(bench_block(result))


def _scope(rows: RunRows, stage: int | None) -> Scope | None:
    """The judged window of one stage. Raises PlainError."""
    if stage is None:
        return None
    cut = windows(rows.events)
    if stage > len(cut):
        raise PlainError(f"--stage {stage}: the run has {len(cut)} stages that began and ended")
    window = cut[stage - 1]
    return Scope(start_ns=window.settled_ns, end_ns=window.end_ns, users=window.users)
