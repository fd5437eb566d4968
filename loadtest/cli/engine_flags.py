"""The flags a server is started with, shared by the commands that predict from model and GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, Final

import click

from estimator.catalog import find_model, read_gpu
from estimator.estimate import Estimate, estimate
from estimator.hf_config import read_model
from estimator.spec import EngineSpec, Workload
from estimator.weights import weights_on_rank

COUNT: Final = click.IntRange(min=1)
FLAGS: Final = (
    click.option("--gpu", help="A name from configs/gpus, such as h100-80gb."),
    click.option("--engine", type=click.Choice(["vllm", "lmdeploy"]), default="vllm", show_default=True),
    click.option("--max-model-len", type=COUNT, help="Default: what the model was made for."),
    click.option("--tp", type=COUNT, default=1, show_default=True, help="Tensor-parallel GPUs."),
    click.option("--kv-cache-dtype", default="auto", show_default=True),
    click.option("--max-num-seqs", type=COUNT, help="Default: the engine's own for this GPU."),
    click.option("--max-num-batched-tokens", type=COUNT, help="Default: the engine's own for this GPU."),
    click.option("--block-size", type=COUNT, help="Tokens a block. Default: 16 (vLLM), 64 (LMDeploy)."),
    click.option("--gpu-memory-utilization", type=float, help="Default: vLLM's or LMDeploy's own."),
    click.option("--kv-cache-memory-bytes", type=COUNT, help="Exactly this for the KV cache of each GPU."),
    click.option("--num-gpu-blocks-override", type=COUNT, help="Exactly this many blocks."),
    click.option("--enforce-eager", is_flag=True, help="No CUDA graphs."),
)


def engine_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command the flags, in the order they stand here."""
    for flag in reversed(FLAGS):
        command = flag(command)
    return command


def estimate_from(model: str, options: Mapping[str, Any], workload: Workload | None) -> Estimate:
    """Reads the model and the GPU and puts the flags together. Raises SpecError with the fix."""
    engine = EngineSpec(
        **{field.name: options[field.name] for field in fields(EngineSpec) if field.name in options}
    )
    path = find_model(model)
    spec = read_model(path)
    weights = weights_on_rank(spec, engine.tp, path if path.is_dir() else None)
    return estimate(spec, read_gpu(options["gpu"]), engine, weights, workload)
