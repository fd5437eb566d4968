"""What a signed run of a real server teaches the next prediction: kept, recalled, and said each time."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

import click

from estimator.calibration import calibration_path, remember
from estimator.capacity import Prediction
from estimator.estimate import Estimate
from estimator.spec import SpecError
from estimator.twin.cost import ServerCost
from estimator.twin.cost_file import KeptFor, LevelKept, MeasuredCost, RunKept, write_cost
from estimator.twin.kept_cost import kept_for, kept_path, recall_cost
from estimator.twin.validated import Quantity
from loadtest.cli.answers import overheads_shown, settings_for
from loadtest.cli.run_server import estimate_named_run, of_estimate, server_of_run
from loadtest.named_server import is_simulated
from loadtest.reporter.observation import StageObservation
from loadtest.reporter.run_cost import Calibrated, calibrated
from loadtest.reporter.run_levels import REQUESTS_KEPT_MIN, telling
from loadtest.reporter.verdict import Verdict
from loadtest.run_folder import Manifest


def kept_cost(answer: Estimate) -> ServerCost | None:
    """The step cost kept of this very server, and a line that names its file; a broken file is left aside."""
    server = cost_key(answer, None)
    path = kept_path(server)
    try:
        measured = recall_cost(server)
    except SpecError as error:
        click.echo(f"caution: {error}; predicting without it", err=True)
        return None
    if measured is None:
        return None
    click.echo(f"step cost: {measured.cost.source}, kept {measured.measured_at} in {path}", err=True)
    return measured.cost


def cost_key(answer: Estimate, version: str | None) -> KeptFor:
    return kept_for(settings_for(answer, version), answer.engine)


def keep(manifest: Manifest, verdict: Verdict, at: datetime) -> list[str]:
    """Keeps what the run shows of its server's memory and steps; one line for each thing kept or left.

    Raises SpecError where nothing can be learned from such a run, or a file cannot be written.
    """
    _require_real(manifest, verdict)
    day = at.astimezone(UTC).strftime("%Y-%m-%d")
    lines = _keep_memory(manifest, day)
    stages = telling(verdict.observation.stages)
    requests = sum(stage.requests for stage in stages)
    if requests < REQUESTS_KEPT_MIN:
        said = f"{requests} requests without queue and preemption, {REQUESTS_KEPT_MIN} are needed"
        return [*lines, f"step cost not kept: {said}"]
    return [*lines, _keep_cost(manifest, verdict, stages, day)]


def _require_real(manifest: Manifest, verdict: Verdict) -> None:
    named = manifest.named
    if is_simulated(named, manifest.versions):
        raise SpecError(f"{manifest.run_id} was of a simulated server, which teaches nothing of a real one")
    if named is None or named.gpu is None:
        raise SpecError(f"{manifest.run_id} names no model and GPU: sign off with --model-config and --gpu")
    if verdict.status == "VOID" or verdict.observation.server_died:
        raise SpecError(f"{manifest.run_id} is no measure of its server: {verdict.reason}")


def _keep_memory(manifest: Manifest, day: str) -> list[str]:
    answer = estimate_named_run(manifest)
    shown = overheads_shown(answer, manifest.server)
    if shown is None:
        return ["memory not kept: the server's blocks do not reveal it under these flags"]
    path = calibration_path()
    remember(settings_for(answer, manifest.versions.get("server")), shown, path, day)
    blocks = int(manifest.server["num_gpu_blocks"])
    return [
        f"kept in {path}: the memory of {answer.model.name} on {answer.gpu.name}, by its {blocks:,} blocks"
    ]


def _keep_cost(manifest: Manifest, verdict: Verdict, stages: tuple[StageObservation, ...], day: str) -> str:
    run = server_of_run(manifest)
    assert run.answer is not None
    version = manifest.versions.get("server")
    server = cost_key(run.answer, version)
    seed = int(manifest.scenario["seed"])
    source = f"measured by {manifest.run_id} ({server.engine} {version}), {day}"
    found = calibrated(of_estimate(run.answer).server, stages, seed, source)
    path = kept_path(server)
    write_cost(
        path,
        MeasuredCost(
            model=server.model,
            engine=server.engine,
            version=version,
            measured_at=day,
            cost=found.cost,
            kept_for=server,
            run=_run_kept(manifest, verdict, found, sum(stage.requests for stage in stages)),
        ),
    )
    return f"kept in {path}: what a step costs, by {len(stages)} stages"


def _run_kept(manifest: Manifest, verdict: Verdict, found: Calibrated, requests: int) -> RunKept:
    prediction: Prediction | None = verdict.prediction
    blocks = manifest.server.get("num_gpu_blocks", "")
    return RunKept(
        run_id=manifest.run_id,
        requests=requests,
        num_gpu_blocks=int(blocks) if blocks.isdigit() else None,
        n_kv=None if prediction is None else prediction.n_kv,
        n_max=verdict.n_max,
        levels=tuple(
            LevelKept(users=one.users, foretold=_named(one.foretold), seen=_named(one.seen))
            for one in found.replayed
        ),
    )


def _named(figures: Mapping[Quantity, float]) -> dict[str, float]:
    return {str(name): value for name, value in figures.items()}
