"""`ullage estimate`: how many requests fit, from model, GPU and engine flags."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import click

from estimator.catalog import find_model, read_gpu
from estimator.estimate import Estimate
from estimator.estimate import estimate as estimated
from estimator.hf_config import read_model
from estimator.spec import EngineSpec, SpecError, Workload
from estimator.weights import weights_on_rank
from loadtest.reporter.estimate_text import estimate_dict, estimate_text, textbook_dict, textbook_text

COUNT = click.IntRange(min=1)


@click.command()
@click.argument("model", required=False)
@click.option("--gpu", help="A name from configs/gpus, such as h100-80gb.")
@click.option("--engine", type=click.Choice(["vllm", "lmdeploy"]), default="vllm", show_default=True)
@click.option("--input-len", type=COUNT, help="Prompt tokens of a request.")
@click.option("--output-len", type=COUNT, help="Output tokens of a request. Default: fill max_model_len.")
@click.option("--max-model-len", type=COUNT, help="Default: what the model was made for.")
@click.option("--tp", type=COUNT, default=1, show_default=True, help="Tensor-parallel GPUs.")
@click.option("--kv-cache-dtype", default="auto", show_default=True)
@click.option("--max-num-seqs", type=COUNT, help="Default: the engine's own for this GPU.")
@click.option("--max-num-batched-tokens", type=COUNT, help="Default: the engine's own for this GPU.")
@click.option("--block-size", type=COUNT, help="Tokens a block. Default: 16 (vLLM), 64 (LMDeploy).")
@click.option("--gpu-memory-utilization", type=float, help="Default: vLLM's or LMDeploy's own.")
@click.option("--kv-cache-memory-bytes", type=COUNT, help="Exactly this for the KV cache of each GPU.")
@click.option("--num-gpu-blocks-override", type=COUNT, help="Exactly this many blocks.")
@click.option("--enforce-eager", is_flag=True, help="No CUDA graphs.")
@click.option("--free-vram-gib", type=float, help="With --per-request-mib: the textbook answer; no MODEL.")
@click.option("--per-request-mib", type=float, help="VRAM of one request in the textbook answer.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def estimate(model: str | None, as_json: bool, **options: Any) -> None:
    """How many requests fit at once? MODEL: a config.json, a model folder, or a name from configs/models."""
    vram_gib, request_mib = options["free_vram_gib"], options["per_request_mib"]
    if vram_gib is None and request_mib is None:
        answer = predicted(model, options)
        text, facts = estimate_text, estimate_dict
        click.echo(json.dumps(facts(answer), indent=2) if as_json else text(answer))
        return
    if model is not None or vram_gib is None or request_mib is None:
        raise SpecError("the textbook answer takes --free-vram-gib and --per-request-mib, and no MODEL")
    facts_of = textbook_dict(vram_gib, request_mib)
    click.echo(json.dumps(facts_of, indent=2) if as_json else textbook_text(vram_gib, request_mib))


def predicted(model: str | None, options: Mapping[str, Any]) -> Estimate:
    """Reads the model and the GPU and puts the flags together; raises SpecError with the fix."""
    if model is None or options["gpu"] is None:
        raise SpecError("name a MODEL and a --gpu, such as: ullage estimate Qwen3-8B --gpu h100-80gb")
    engine = EngineSpec(**{f.name: options[f.name] for f in fields(EngineSpec) if f.name in options})
    path = find_model(model)
    spec = read_model(path)
    weights = weights_on_rank(spec, engine.tp, path if path.is_dir() else None)
    lengths = options["input_len"], options["output_len"]
    if (lengths[0] is None) != (lengths[1] is None):
        raise SpecError("give both --input-len and --output-len, or neither to fill max_model_len")
    workload = None if lengths[0] is None else Workload.constant(*lengths)
    return estimated(spec, read_gpu(options["gpu"]), engine, weights, workload)
