"""`ullage models`: the models of configs/models, by the few facts that decide their memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click

from estimator.catalog import configs_folder, find_model, names
from estimator.fields import Config, fields_of
from estimator.spec import SpecError
from loadtest.cli.listing import as_json, as_table, matching

ENDINGS: Final = ("ForCausalLM", "ForConditionalGeneration")
"""How Transformers ends an architecture's name: it tells no two models apart, so the table leaves it out."""
COLUMNS: Final = {
    "model": "<",
    "architecture": "<",
    "layers": ">",
    "KV heads": ">",
    "cache": "<",
    "context": ">",
    "weights": "<",
}


def _slides(values: Config) -> bool:
    return bool(values.get("sliding_window")) and values.get("use_sliding_window") is not False


CACHES: Final[Mapping[str, Callable[[Config], bool]]] = {
    "sparse": lambda values: "index_topk" in values,
    "latent": lambda values: "kv_lora_rank" in values,
    "hybrid": lambda values: bool({"full_attention_interval", "hybrid_override_pattern"} & set(values)),
    "cross": lambda values: "encoder_layers" in values,
    "window": _slides,
    "chunk": lambda values: "attention_chunk_size" in values,
}
"""What a cache is besides keys and values of every token, by the key of config.json that says so; the first
that holds names it. MiMo has an attention_chunk_size that vLLM leaves unread, hence window before chunk."""
SHARED: Final = ("sparse", "latent")
"""One vector serves all heads here, so that a count of KV heads would mislead."""


@click.command()
@click.argument("words", nargs=-1)
@click.option("--json", "machine", is_flag=True, help="For machines.")
def models(words: Sequence[str], machine: bool) -> None:
    """List the models that can be named; WORDS keep those that have all of them in their name."""
    folder = configs_folder()
    found = matching(names("models", folder), words, "models")
    entries = [describe(name, _read(find_model(name, folder))) for name in found]
    if machine:
        click.echo(as_json(entries))
        return
    click.echo(as_table(COLUMNS, [_row(entry) for entry in entries]))


def describe(name: str, config: Config) -> dict[str, Any]:
    """Facts of a config.json, as it writes them: a count of layers, heads or tokens, None where it has none.

    Nothing is checked or worked out here; estimator.hf_config does that.
    """
    values = fields_of(config, name).values
    cache = next((word for word, holds in CACHES.items() if holds(values)), "full")
    heads = _whole(values, "num_key_value_heads", "num_attention_heads", "decoder_attention_heads")
    quantisation = values.get("quantization_config") or config.get("quantization_config")
    method = quantisation.get("quant_method") if isinstance(quantisation, dict) else None
    return {
        "name": name,
        "architecture": config["architectures"][0],
        "layers": _whole(values, "num_hidden_layers"),
        "kv_heads": None if cache in SHARED else heads,
        "cache": cache,
        "context_tokens": _whole(values, "max_position_embeddings", "max_target_positions"),
        "weights": method or _dtype(values) or _dtype(config) or "bfloat16",
    }


def _row(entry: Mapping[str, Any]) -> list[str]:
    short = entry["architecture"]
    for ending in ENDINGS:
        short = short.removesuffix(ending)
    cells = {**entry, "architecture": short}.values()
    return ["-" if cell is None else f"{cell:,}" if isinstance(cell, int) else cell for cell in cells]


def _dtype(values: Config) -> str | None:
    return values.get("dtype") or values.get("torch_dtype")


def _whole(values: Config, *keys: str) -> int | None:
    return next((values[key] for key in keys if isinstance(values.get(key), int)), None)


def _read(file: Path) -> Config:
    """Raises SpecError when the file is not the config.json of a model."""
    try:
        config = json.loads(file.read_bytes())
        config["architectures"][0].removesuffix("")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise SpecError(f"{file} is not a config.json that names its architectures") from None
    return dict(config)
