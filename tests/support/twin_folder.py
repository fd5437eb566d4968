"""The run folder that a sign-off of a simulated server leaves, made under the virtual clock."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from fake_run import FakeRun
from twin_rows import TwinRun

from estimator.capacity import Prediction
from estimator.spec import Lengths
from loadtest.run_folder import RunFolder
from loadtest.scenario import Limits, Scenario, Stage, scenario_body

LIMITS = Limits(ttft_s=2.0, tpot_s=0.1)


def lengths_body(run: TwinRun, limits: Limits = LIMITS) -> dict[str, Any]:
    """The scenario that such a load is of."""
    scenario = Scenario(
        name="short",
        seed=run.seed,
        input_tokens=Lengths.constant(run.workload.input_tokens.longest),
        output_tokens=Lengths.constant(run.workload.output_tokens.longest),
        stages=(Stage(users=1, hold_s=30.0),),
        settle_s=10.0,
        limits=limits,
    )
    return dict(scenario_body(scenario))


def write_twin_run(
    run: TwinRun, root: Path, run_id: str, prediction: Prediction | None, **manifest: Any
) -> Path:
    """The folder root/run_id; keywords replace what the manifest says."""
    folder = RunFolder.create(root, run_id)
    told = dataclasses.replace(
        FakeRun(stages=()).manifest, run_id=run_id, scenario=lengths_body(run), **manifest
    )
    folder.write_manifest(told)
    if prediction is not None:
        folder.write_prediction(prediction)
    rows = run.rows()
    writers = folder.records_writer(0), folder.samples_writer("engine"), folder.events_writer()
    for writer, part in zip(writers, (rows.requests, rows.samples, rows.events), strict=True):
        for row in part:
            writer.append(row)
        writer.close()
    return folder.root
