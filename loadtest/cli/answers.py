"""From a command's options to an Estimate: reads the model, the GPU, and what a calibration knows of them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from estimator.calibration import (
    Settings,
    calibration_path,
    context_from_log,
    overheads_from_blocks,
    overheads_from_log,
    recall,
    remember,
    settings_of,
)
from estimator.catalog import find_model, read_gpu
from estimator.engine_spec import EngineSpec
from estimator.estimate import Estimate, estimate
from estimator.hf_config import read_model
from estimator.memory import NO_OVERHEADS, Overheads
from estimator.model import ModelSpec
from estimator.spec import GpuSpec, SpecError, Workload
from estimator.vllm import VERSION
from estimator.vllm_cache.defaults import limits
from estimator.weights.count import Weights, weights_of_tensors, weights_on_rank
from loadtest.cli.engine_flags import engine_from, single

if TYPE_CHECKING:
    from estimator.server_log import ServerLog


def read_named(model: str) -> tuple[ModelSpec, Path | None]:
    """The model and the folder of its weights, where there is one."""
    path = find_model(model)
    return read_model(path), path if path.is_dir() else None


def estimate_from(model: str, options: Mapping[str, Any], workload: Workload | None) -> Estimate:
    """Reads the model and the GPU and puts the flags together. Raises SpecError with the fix.

    Overheads come from --server-log, which is then remembered; else from an earlier calibration of the same
    settings; else they are priors.
    """
    chosen = single(options)
    engine, gpu = engine_from(chosen), read_gpu(chosen["gpu"])
    spec, folder = read_named(model)
    weights = weights_for(spec, engine, gpu, folder, options.get("hub_weights"))
    overheads = _overheads(spec, gpu, engine, weights[0], options)
    return estimate(spec, gpu, engine, weights, workload, overheads)


def learn_from(answer: Estimate, config: Mapping[str, str], version: str | None) -> bool:
    """Remembers the overheads that a running server's blocks reveal; False where they reveal none."""
    overheads = overheads_shown(answer, config)
    if overheads is None:
        return False
    remember(settings_for(answer, version), overheads, calibration_path(), today())
    return True


def overheads_shown(answer: Estimate, config: Mapping[str, str]) -> Overheads | None:
    """The overheads that a running server's blocks reveal; None where they reveal none.

    Only where the server was started as the answer assumes (utilisation, block size) and no flag fixes its
    KV cache: then all that lies between the weights and its blocks is overhead.
    """
    engine, limits_of = answer.engine, answer.budget.limits
    is_fixed = engine.kv_cache_memory_bytes is not None or engine.num_gpu_blocks_override is not None
    blocks, share = config.get("num_gpu_blocks", ""), config.get("gpu_memory_utilization", "")
    is_same = config.get("block_size") == str(limits_of.block_size) and share == str(limits_of.memory_share)
    fixed_there = config.get("num_gpu_blocks_override", "None"), config.get("kv_cache_memory_bytes", "None")
    if is_fixed or not is_same or not blocks.isdigit() or fixed_there != ("None", "None"):
        return None
    return overheads_from_blocks(answer.budget, int(blocks))


def settings_for(answer: Estimate, version: str | None) -> Settings:
    """What a calibration of the estimate's server is kept under."""
    return _settings(answer.model, answer.gpu, answer.engine, version)


def minor(version: str) -> str:
    """0.32.1 -> 0.32: what start-up and steps take changes with these."""
    return ".".join(version.split(".")[:2])


def weights_for(
    spec: ModelSpec, engine: EngineSpec, gpu: GpuSpec, folder: Path | None, repo: str | None = None
) -> tuple[Weights, ...]:
    """What each pipeline stage loads; repo: read the headers on the hub instead of the folder."""
    if repo is None:
        return weights_on_rank(spec, engine, folder, compute_capability=gpu.compute_capability)
    from estimator.weights.hub import tensors_on_hub  # opens a connection: only where it is asked for

    return weights_of_tensors(
        spec,
        engine,
        tensors_on_hub(repo),
        source=f"safetensors headers of {repo}",
        compute_capability=gpu.compute_capability,
    )


def _overheads(
    spec: ModelSpec, gpu: GpuSpec, engine: EngineSpec, weights: Weights, options: Mapping[str, Any]
) -> Overheads:
    file = options.get("server_log")
    log = None if file is None else read_log(file)
    version = None if log is None else log.version
    settings = _settings(spec, gpu, engine, version)
    if log is None:
        return NO_OVERHEADS if options.get("no_calibration") else _recalled(settings)
    _require_same_server(log, engine)
    if engine.engine == "vllm":
        overheads = overheads_from_log(log)
    else:
        overheads = context_from_log(log, gpu.memory_total_bytes, weights.size_bytes)
    remember(settings, overheads, calibration_path(), today())
    return overheads


def today() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d")


def _recalled(settings: Settings) -> Overheads:
    """What is kept of such a server, and a line that says so; a broken file is named and left aside."""
    path = calibration_path()
    try:
        kept = recall(settings, path)
    except SpecError as error:
        click.echo(f"caution: {error}; predicting without it", err=True)
        return NO_OVERHEADS
    if kept is None:
        return NO_OVERHEADS
    click.echo(f"memory: {kept.source}, from {path}", err=True)
    return kept


def _settings(spec: ModelSpec, gpu: GpuSpec, engine: EngineSpec, version: str | None) -> Settings:
    if engine.engine == "vllm":
        return settings_of(spec.name, gpu.name, minor(version or VERSION), engine, limits(spec, gpu, engine))
    from estimator.lmdeploy import defaults  # only for those who ask for LMDeploy

    resolved = defaults.limits(spec, gpu, engine)
    return settings_of(spec.name, gpu.name, minor(version or defaults.VERSION), engine, resolved)


def read_log(file: Path) -> ServerLog:
    """Raises SpecError when the file cannot be read or says nothing."""
    from estimator.server_log import parse_server_log  # its patterns are for those who have a log

    try:
        with file.open(encoding="utf-8", errors="replace") as lines:
            return parse_server_log(lines)
    except OSError as error:
        raise SpecError(f"cannot read {file}: {error.strerror}") from None


def _require_same_server(log: ServerLog, engine: EngineSpec) -> None:
    for said, ours, flag in (
        (log.engine, engine.engine, "--engine"),
        (log.tensor_parallel_size, engine.tp, "--tp"),
        (log.pipeline_parallel_size, engine.pp, "--pp"),
    ):
        if said is not None and said != ours:
            raise SpecError(f"the log is of a server with {flag} {said}, not {ours}: name its own flags")
