"""`ullage estimate`: how many requests fit, from model, GPU and engine flags."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click

from estimator.estimate import Estimate
from estimator.spec import SpecError, Workload
from loadtest.cli.engine_flags import COUNT, engine_flags, estimate_from
from loadtest.reporter.estimate_text import estimate_dict, estimate_text, textbook_dict, textbook_text


@click.command()
@click.argument("model", required=False)
@engine_flags
@click.option("--input-len", type=COUNT, help="Prompt tokens of a request.")
@click.option("--output-len", type=COUNT, help="Output tokens of a request. Default: fill max_model_len.")
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
    """Raises SpecError when what must be named is not."""
    if model is None or options["gpu"] is None:
        raise SpecError("name a MODEL and a --gpu, such as: ullage estimate Qwen3-8B --gpu h100-80gb")
    lengths = options["input_len"], options["output_len"]
    if (lengths[0] is None) != (lengths[1] is None):
        raise SpecError("give both --input-len and --output-len, or neither to fill max_model_len")
    return estimate_from(model, options, None if lengths[0] is None else Workload.constant(*lengths))
