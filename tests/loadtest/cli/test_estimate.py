"""`ullage estimate` as a person and as a machine use it."""

from __future__ import annotations

import csv
import io
import json

import pytest
from click.testing import CliRunner, Result

from estimator.spec import SpecError
from loadtest.cli.estimate import estimate

CHAT = ("--input-len", "1000", "--output-len", "300")
MTP = '{"method": "mtp", "num_speculative_tokens": 1}'


def run(*arguments: str) -> Result:
    return CliRunner().invoke(estimate, arguments)


STABLE = (
    *("num_blocks", "bytes_per_block", "block_size", "blocks_per_request", "kv_cache_size_tokens"),
    *("max_concurrency", "min_bytes_one_request", "weight_bytes", "ledger", "n_guaranteed", "n_sustained"),
    *("n_saturation", "n_slots", "n_safe", "limited_by", "assumptions", "intervals"),
)
"""Keys of --json that others build on."""


@pytest.mark.parametrize(
    "arguments",
    [
        ("Qwen3-8B", "--gpu", "h100-80gb", *CHAT),
        ("DeepSeek-V4-Flash", "--gpu", "h200", "--tp", "4", "--max-model-len", "131072", *CHAT),
        ("DeepSeek-V3", "--gpu", "h200-141gb", "--tp", "8", "--pp", "2"),
        ("Qwen3.5-27B", "--gpu", "h100", "--tp", "2", "--speculative-config", MTP, *CHAT),
        ("Qwen3-8B", "--gpu", "h100,l4,a10", "--tp", "1,2", "--kv-cache-dtype", "auto,fp8", *CHAT),
        ("Qwen3-8B", "--gpu", "h100", "--textbook"),
        ("Qwen3-8B", "--gpu", "h100-80gb", "--engine", "lmdeploy", "--kv-cache-dtype", "int4", *CHAT),
        ("Qwen3-32B", "--gpu", "h200-141gb", "--tp", "16", "--kv-cache-dtype", "int4_per_token_head"),
        ("tiny", "--gpu", "l4-24gb", "--num-gpu-blocks-override", "512", "--block-size", "32"),
        ("--free-vram-gib", "2", "--per-request-mib", "8"),
    ],
)
def test_every_answer_fits_100_columns(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.exit_code == 0
    assert max(map(len, result.output.splitlines())) <= 100
    assert "N_safe" in result.output or "--textbook" in arguments


def test_the_json_keeps_the_keys_that_others_build_on() -> None:
    facts = json.loads(run("DeepSeek-V3", "--gpu", "h200", "--tp", "8", "--pp", "2", "--json").output)
    assert set(STABLE) <= set(facts)
    assert len(facts["bytes_per_block"]) == len(facts["weight_bytes"]) == 2
    assert facts["intervals"]["num_blocks"]["low"] < facts["num_blocks"]


def test_a_question_with_several_values_is_one_table_the_roomiest_first() -> None:
    table = run("Qwen3-8B", "--gpu", "l4,h100", "--tp", "1,2", "--max-model-len", "8k,8K", *CHAT, "--csv")
    reader = csv.DictReader(io.StringIO(table.output))
    rows, header = list(reader), reader.fieldnames
    assert len(rows) == 8
    assert {row["max_model_len"] for row in rows} == {"8000", "8192"}
    safe = [int(row["n_safe"] or -1) for row in rows]
    assert safe == sorted(safe, reverse=True)
    assert header is not None
    assert {"gpu", "limited_by", "refusal"} <= set(header)


def test_what_does_not_start_stands_at_the_end_with_its_reason() -> None:
    text = run("Qwen3-32B", "--gpu", "l4,h200", *CHAT).output.splitlines()
    refused = next(index for index, line in enumerate(text) if line.startswith("l4-24gb"))
    assert "does not fit" in " ".join(text[refused : refused + 3])
    assert text[1].startswith("h200-141gb")


@pytest.mark.parametrize(
    ("size", "tokens"), [("8192", 8192), ("8k", 8000), ("8K", 8192), ("25.6k", 25_600), ("0.5K", 512)]
)
def test_sizes_are_written_as_in_vllm(size: str, tokens: int) -> None:
    facts = json.loads(run("Qwen3-8B", "--gpu", "h100", "--max-model-len", size, "--json").output)
    assert facts["engine"]["max_model_len"] == tokens


def test_the_ledger_of_the_json_sums_to_the_total() -> None:
    facts = json.loads(run("Qwen3-8B", "--gpu", "h100-80gb", *CHAT, "--json").output)
    ledger = facts["ledger"]
    assert sum(line["size_bytes"]["likely"] for line in ledger["lines"]) == ledger["total_bytes"]
    assert facts["bytes_per_block"] == [16 * 147_456]


@pytest.mark.parametrize("slots", ["40", "1024"])
def test_n_safe_is_never_above_a_limit(slots: str) -> None:
    facts = json.loads(run("Qwen3-8B", "--gpu", "h100-80gb", *CHAT, "--max-num-seqs", slots, "--json").output)
    for end in ("low", "likely", "high"):
        safe, guaranteed = (facts["intervals"][name][end] for name in ("n_safe", "n_guaranteed"))
        assert safe <= min(guaranteed, facts["n_slots"])
    assert facts["limited_by"] == ("slots" if slots == "40" else "kv")


def test_text_and_json_tell_the_same_numbers() -> None:
    text = run("tiny", "--gpu", "l4-24gb", "--num-gpu-blocks-override", "512", "--block-size", "32", *CHAT)
    facts = run(
        *("tiny", "--gpu", "l4-24gb", "--num-gpu-blocks-override", "512", "--block-size", "32", *CHAT),
        "--json",
    )
    guaranteed = json.loads(facts.output)["n_guaranteed"]
    row = next(line for line in text.output.splitlines() if "N_guaranteed" in line)
    assert row.split()[1] == str(guaranteed) == str(511 // 41)


def test_the_textbook_answer_is_256_and_204_after_the_buffer() -> None:
    facts = json.loads(run("--free-vram-gib", "2", "--per-request-mib", "8", "--json").output)
    assert (facts["requests"], facts["n_safe"]) == (256, 204)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "name a MODEL and a --gpu"),
        (("Qwen3-8B",), "name a MODEL and a --gpu"),
        (("Qwen3-8B", "--gpu", "h100-80gb", "--input-len", "10"), "give both --input-len and --output-len"),
        (("--free-vram-gib", "2"), "--free-vram-gib and --per-request-mib"),
        (("Qwen3-8B", "--free-vram-gib", "2", "--per-request-mib", "8"), "no MODEL"),
        (("Qwen3-8B", "--gpu", "h1000"), "did you mean .*h100-80gb"),
    ],
)
def test_a_wrong_command_is_one_sentence(arguments: tuple[str, ...], sentence: str) -> None:
    error = run(*arguments).exception
    assert isinstance(error, SpecError)
    with pytest.raises(SpecError, match=sentence):
        raise error
