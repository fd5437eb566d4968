"""`ullage estimate` as a person and as a machine use it."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner, Result

from estimator.spec import SpecError
from loadtest.cli.estimate import estimate

CHAT = ("--input-len", "1000", "--output-len", "300")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(estimate, arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ("Qwen3-8B", "--gpu", "h100-80gb", *CHAT),
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
    assert "N_safe" in result.output


def test_the_ledger_of_the_json_sums_to_the_total() -> None:
    facts = json.loads(run("Qwen3-8B", "--gpu", "h100-80gb", *CHAT, "--json").output)
    ledger = facts["ledger"]
    assert sum(line["size_bytes"]["likely"] for line in ledger["lines"]) == ledger["total_bytes"]
    assert facts["kv_cache"]["bytes_per_token"] == 147_456


@pytest.mark.parametrize("slots", ["40", "1024"])
def test_n_safe_is_never_above_a_limit(slots: str) -> None:
    facts = json.loads(run("Qwen3-8B", "--gpu", "h100-80gb", *CHAT, "--max-num-seqs", slots, "--json").output)
    for end in ("low", "likely", "high"):
        assert facts["n_safe"][end] <= min(facts["n_guaranteed"][end], facts["n_slots"])
    assert facts["limited_by"] == ("slots" if slots == "40" else "kv")


def test_text_and_json_tell_the_same_numbers() -> None:
    text = run("tiny", "--gpu", "l4-24gb", "--num-gpu-blocks-override", "512", "--block-size", "32", *CHAT)
    facts = run(
        *("tiny", "--gpu", "l4-24gb", "--num-gpu-blocks-override", "512", "--block-size", "32", *CHAT),
        "--json",
    )
    guaranteed = json.loads(facts.output)["n_guaranteed"]["likely"]
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
