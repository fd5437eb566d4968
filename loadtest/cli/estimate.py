"""`ullage estimate`: how many requests fit, from model, GPU and engine flags, or from a running server."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from estimator.catalog import read_gpu
from estimator.estimate import Estimate
from estimator.spec import SpecError, Workload
from estimator.what_if import what_if
from loadtest.cli.access_flags import access_flags, origin_from
from loadtest.cli.answers import estimate_from, learn_from, read_named
from loadtest.cli.engine_flags import SIZE, catalog_names, combinations, engine_flags, engine_from, single
from loadtest.reporter.estimate_text import estimate_dict, estimate_text
from loadtest.reporter.host_text import host_dict, host_text
from loadtest.reporter.what_if_text import what_if_csv, what_if_text


@click.command()
@click.argument("model", required=False, shell_complete=catalog_names("models"))
@engine_flags
@click.option("--input-len", type=SIZE, help="Prompt tokens of a request.")
@click.option("--output-len", type=SIZE, help="Output tokens of a request. Default: fill max_model_len.")
@click.option(
    "--host", help="Ask this server too, and print the difference; MODEL and --gpu may be left out."
)
@click.option(
    "--server-log",
    type=click.Path(path_type=Path),
    help="The server's start-up output: its overheads replace the priors, now and later.",
)
@click.option("--no-calibration", is_flag=True, help="Use the priors, whatever was learned before.")
@click.option("--hub-weights", help="Read the safetensors headers of this OWNER/NAME on the hub.")
@click.option("--textbook", is_flag=True, help="The textbook formulas for MODEL, and where each misleads.")
@click.option("--free-vram-gib", type=float, help="With --per-request-mib: the textbook answer; no MODEL.")
@click.option("--per-request-mib", type=float, help="VRAM of one request in the textbook answer.")
@access_flags
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@click.option("--csv", "as_csv", is_flag=True, help="The table as CSV.")
def estimate(model: str | None, **options: Any) -> None:
    """How many requests fit at once? MODEL: a config.json, a model folder, or a name from `ullage models`.

    --gpu, --tp, --kv-cache-dtype and --max-model-len take several values separated by commas; the answer is
    then one table of all combinations. Sizes as vLLM writes them: 8k is 8,000 and 8K is 8,192.
    """
    click.echo(_output(model, options))


def _output(model: str | None, options: Mapping[str, Any]) -> str:
    if options["free_vram_gib"] is not None or options["per_request_mib"] is not None:
        return _textbook_division(model, options)
    if options["host"] is not None:
        return _host(model, options)
    if options["textbook"] and model is not None:
        return _textbook_sheet(model, options)
    if model is None or options["gpu"] is None:
        raise SpecError("name a MODEL and a --gpu, such as: ullage estimate Qwen3-8B --gpu h100-80gb")
    if options["as_csv"] or len(combinations(options)) > 1:
        return _table(model, options)
    answer = estimate_from(model, options, _workload(options))
    return _json(estimate_dict(answer)) if options["as_json"] else estimate_text(answer)


def _textbook_division(model: str | None, options: Mapping[str, Any]) -> str:
    from loadtest.reporter.textbook_division import textbook_dict, textbook_text

    vram_gib, request_mib = options["free_vram_gib"], options["per_request_mib"]
    if model is not None or vram_gib is None or request_mib is None:
        raise SpecError("the textbook answer takes --free-vram-gib and --per-request-mib, and no MODEL")
    if options["as_json"]:
        return _json(textbook_dict(vram_gib, request_mib))
    return textbook_text(vram_gib, request_mib)


def _textbook_sheet(model: str, options: Mapping[str, Any]) -> str:
    # a page that few ask for, so its modules are not read for the others
    from loadtest.reporter.textbook_case import textbook_case
    from loadtest.reporter.textbook_text import textbook_sheet_dict, textbook_sheet_text

    spec, _ = read_named(model)
    workload = _workload(options)
    chosen = single(options)
    gpu = None if chosen["gpu"] is None else read_gpu(chosen["gpu"])
    tokens = chosen["max_model_len"] or spec.context_tokens_max
    case = textbook_case(spec, gpu, tokens if workload is None else workload.longest_tokens)
    return _json(textbook_sheet_dict(case)) if options["as_json"] else textbook_sheet_text(case)


def _workload(options: Mapping[str, Any]) -> Workload | None:
    lengths = options["input_len"], options["output_len"]
    if (lengths[0] is None) != (lengths[1] is None):
        raise SpecError("give both --input-len and --output-len, or neither to fill max_model_len")
    return None if lengths[0] is None else Workload.constant(*lengths)


def _table(model: str, options: Mapping[str, Any]) -> str:
    spec, folder = read_named(model)
    asked = combinations(options)
    gpus = {name: read_gpu(name) for name in {row["gpu"]: None for row in asked}}
    servers = [(gpus[row["gpu"]], engine_from(row)) for row in asked]
    rows = what_if(spec, folder, servers, _workload(options))
    if options["as_csv"]:
        return what_if_csv(rows)
    if not options["as_json"]:
        return what_if_text(rows)
    return _json(
        [
            {"gpu": row.gpu.name, "refusal": row.refusal} if row.answer is None else estimate_dict(row.answer)
            for row in rows
        ]
    )


def _host(model: str | None, options: Mapping[str, Any]) -> str:
    # the HTTP client is not needed, and not imported, where no server is asked
    from loadtest.conductor.server_facts import read_server
    from loadtest.origin import read_api_key

    origin = origin_from(options["host"], options)
    server = read_server(origin, read_api_key(variable=origin.access.api_key_variable))
    answer: Estimate | None = None
    if model is not None and options["gpu"] is not None:
        answer = estimate_from(model, options, _workload(options))
    reading = server.reading
    learned = False
    if answer is not None and reading is not None and reading.engine == answer.engine.engine == "vllm":
        learned = learn_from(answer, reading.cache_config, server.version)
    facts = host_dict(
        engine=None if reading is None else reading.engine,
        version=server.version,
        models={served.name: served.max_model_len for served in server.models},
        config={} if reading is None else reading.cache_config,
        answer=answer,
    )
    if options["as_json"]:
        return _json({"server": facts, "estimate": None if answer is None else estimate_dict(answer)})
    parts = [] if answer is None else [estimate_text(answer)]
    note = ["Its overheads are kept: later estimates with these flags use them."] if learned else []
    return "\n\n".join([*parts, host_text(facts, answer), *note])


def _json(facts: object) -> str:
    return json.dumps(facts, indent=2)
