"""A made-up run as a run folder, written by the writers that a real run uses."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from fake_run import FakeRun

from loadtest.run_folder import Manifest, RunFolder


def write_run(run: FakeRun, root: Path, run_id: str, **manifest: Any) -> Path:
    """The folder root/run_id; keywords replace what the manifest says."""
    folder = RunFolder.create(root, run_id)
    told: Manifest = dataclasses.replace(run.manifest, run_id=run_id, **manifest)
    folder.write_manifest(told)
    if run.prediction is not None:
        folder.write_prediction(run.prediction)
    rows = run.rows()
    writers = folder.records_writer(0), folder.samples_writer("engine"), folder.events_writer()
    for writer, part in zip(writers, (rows.requests, rows.samples, rows.events), strict=True):
        for row in part:
            writer.append(row)
        writer.close()
    return folder.root
