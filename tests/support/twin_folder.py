"""The run folder that a sign-off of a simulated server leaves, made under the virtual clock."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from fake_run import FakeRun
from twin_rows import TwinRun

from estimator.capacity import Prediction
from estimator.catalog import read_gpu
from estimator.engine_spec import EngineSpec
from estimator.spec import Lengths, Workload
from estimator.twin.cost import ServerCost, scaled
from loadtest.cli.run_server import estimate_named, of_estimate
from loadtest.named_server import NamedServer
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


FLAGS = EngineSpec(max_model_len=1024, max_num_seqs=6)
BLOCKS_FEWER = 500
"""Than the priors of the ledger say: what the made-up server has."""


def write_named_run(root: Path, run_id: str, **manifest: Any) -> Path:
    """Of a Qwen2.5-0.5B on an A10 whose steps take 1.6 times their prior; keywords replace the manifest's."""
    answer = estimate_named("Qwen2.5-0.5B", read_gpu("a10"), FLAGS, Workload.constant(64, 32))
    server = of_estimate(answer).server
    blocks = answer.pool.blocks - BLOCKS_FEWER
    limits = answer.budget.limits
    shown = {
        "num_gpu_blocks": str(blocks),
        "block_size": str(limits.block_size),
        "gpu_memory_utilization": str(limits.memory_share),
    }
    told: dict[str, Any] = {
        "model": "qwen",
        "named": NamedServer(model="Qwen2.5-0.5B", gpu="a10-24gb", flags=FLAGS),
        "server": shown,
        "versions": {"server": "0.32.0"},
    }
    run = TwinRun(
        limits=server.limits,
        cost=ServerCost(step=scaled(server.cost.step, 1.6)),
        workload=server.prediction.workload,
        users=(2, 5),
        seed=5,
    )
    prediction = dataclasses.replace(
        server.prediction,
        pool=dataclasses.replace(server.prediction.pool, blocks=blocks, source="metrics"),
    )
    return write_twin_run(run, root, run_id, prediction, **told | manifest)
