"""`ullage models` and `ullage gpus`: what can be named, in one table that fits a terminal."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from estimator.catalog import configs_folder, names, read_gpu
from loadtest.cli import main
from loadtest.cli.listing import as_table, matching
from loadtest.cli.models import describe

WIDTH = 100
NESTED: dict[str, Any] = {
    "architectures": ["SomeForConditionalGeneration"],
    "model_type": "some",
    "text_config": {"num_hidden_layers": 3, "num_key_value_heads": 2, "max_position_embeddings": 64},
}


def ullage(*words: str, configs: Path | None = None) -> Result:
    env = None if configs is None else {"ULLAGE_CONFIGS": str(configs)}
    return CliRunner().invoke(main, list(words), env=env)


@pytest.mark.parametrize("kind", ["models", "gpus"])
def test_every_name_of_the_catalog_is_listed_once_and_the_table_fits_the_width(kind: str) -> None:
    lines = ullage(kind).output.splitlines()
    assert [line.split()[0] for line in lines[1:]] == names(kind, configs_folder())
    assert max(map(len, lines)) <= WIDTH


@pytest.mark.parametrize("kind", ["models", "gpus"])
def test_json_holds_every_entry(kind: str) -> None:
    entries = json.loads(ullage(kind, "--json").output)
    assert [entry["name"] for entry in entries] == names(kind, configs_folder())


def test_the_words_keep_the_names_that_have_them_all() -> None:
    assert matching(["Qwen3-8B", "Qwen3-30B-A3B", "gpt-oss-20b"], ("QWEN", "a3b"), "models") == [
        "Qwen3-30B-A3B"
    ]
    assert [entry["name"] for entry in json.loads(ullage("gpus", "a100", "--json").output)] == [
        "a100-40gb",
        "a100-80gb",
    ]


@pytest.mark.parametrize("kind", ["models", "gpus"])
def test_words_that_match_nothing_are_one_sentence(kind: str) -> None:
    done = ullage(kind, "nothing-like-it")
    assert done.exit_code == 2
    assert done.stderr == (
        f"ullage: no name in configs/{kind} has 'nothing-like-it' in it; `ullage {kind}` lists them all\n"
    )


def test_numbers_end_and_words_begin_in_one_column() -> None:
    table = as_table({"a": "<", "count": ">"}, [["one", "1,000"], ["eleven", "7"]])
    assert table == "a       count\none     1,000\neleven      7"


def test_a_gpu_is_shown_with_the_memory_the_driver_gives() -> None:
    line = next(line for line in ullage("gpus").output.splitlines() if line.startswith("h100-80gb"))
    assert line.split() == ["h100-80gb", "79.18", "3,350", "989.4", "9.0"]
    assert json.loads(ullage("gpus", "h100", "--json").output)[0]["memory_total_bytes"] == (
        read_gpu("h100").memory_total_bytes
    )


def test_a_gpu_without_compute_capability_shows_its_vendor() -> None:
    assert re.search(r"^mi300x-192gb .* amd$", ullage("gpus").output, re.MULTILINE)


def test_a_nested_language_model_is_the_one_described() -> None:
    assert describe("mine", NESTED) == {
        "name": "mine",
        "architecture": "SomeForConditionalGeneration",
        "layers": 3,
        "kv_heads": 2,
        "cache": "full",
        "context_tokens": 64,
        "weights": "bfloat16",
    }


@pytest.mark.parametrize(
    ("keys", "cache", "kv_heads"),
    [
        ({"kv_lora_rank": 512}, "latent", None),
        ({"kv_lora_rank": 512, "index_topk": 2048}, "sparse", None),
        ({"sliding_window": 128, "attention_chunk_size": 128}, "window", 2),
        ({"sliding_window": 128, "use_sliding_window": False}, "full", 2),
        ({"attention_chunk_size": 8192}, "chunk", 2),
        ({"full_attention_interval": 4}, "hybrid", 2),
        ({"encoder_layers": 32}, "cross", 2),
    ],
)
def test_the_cache_is_named_by_the_key_that_makes_it(
    keys: dict[str, Any], cache: str, kv_heads: int | None
) -> None:
    entry = describe("mine", {**NESTED, "text_config": NESTED["text_config"] | keys})
    assert (entry["cache"], entry["kv_heads"]) == (cache, kv_heads)


def test_quantised_weights_are_named_by_their_method() -> None:
    assert describe("mine", {**NESTED, "quantization_config": {"quant_method": "awq"}})["weights"] == "awq"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"architectures": []}', '{"architectures": [1]}'])
def test_a_file_that_is_no_config_is_one_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models/mine.json").write_text(text, encoding="utf-8")
    done = ullage("models", configs=tmp_path)
    assert done.exit_code == 2
    assert "is not a config.json that names its architectures" in done.stderr
