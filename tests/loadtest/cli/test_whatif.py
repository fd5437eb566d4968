"""`ullage whatif` over a finished run: what it says of a change, and what it refuses to say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from fake_folder import write_run
from fake_run import FakeRun, FakeStage
from twin_folder import FLAGS, write_named_run

from loadtest.cli import main
from loadtest.named_server import NamedServer


def run(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["whatif", str(folder), *arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_named_run(tmp_path_factory.mktemp("whatif"), "r1")


@pytest.fixture(scope="module")
def moved(folder: Path) -> dict[str, Any]:
    """The run on another GPU, with an fp8 cache."""
    result = run(folder, "--gpu", "h200", "--kv-cache-dtype", "fp8", "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.output)
    return found


@pytest.fixture(scope="module")
def slots(folder: Path) -> Result:
    return run(folder, "--max-num-seqs", "8", "--users", "7")


def test_five_lines_and_a_table_fit_100_columns(slots: Result) -> None:
    assert slots.exit_code == 0, slots.output
    lines = slots.output.splitlines()
    assert max(map(len, lines)) <= 100
    labels = [line.split("  ")[0] for line in lines[: lines.index("")] if not line.startswith(" ")]
    assert labels == ["What if", "Fits", "Speed", "Wall", "Not known"]
    assert "max_num_seqs 6 -> 8" in slots.output
    assert "at 7 users" in slots.output
    assert "docs/validation/vllm-cpu.md" in slots.output


def test_only_the_flags_given_change(moved: dict[str, Any]) -> None:
    assert moved["change"] == ["gpu a10-24gb -> h200-141gb", "kv_cache_dtype auto -> fp8"]
    assert moved["after"]["n_slots"] == moved["before"]["n_slots"] == FLAGS.max_num_seqs


def test_the_capacity_before_is_the_servers_own_to_the_block(moved: dict[str, Any], folder: Path) -> None:
    shown = json.loads((folder / "manifest.json").read_text())["server"]["num_gpu_blocks"]
    assert moved["before"]["num_blocks"] == int(shown)
    assert moved["after"]["num_blocks"] > 8 * int(shown)  # six times the memory, half the bytes a token


def test_the_run_calibrates_the_twin(moved: dict[str, Any]) -> None:
    """Its server took 1.6 times the prior."""
    assert [one["users"] for one in moved["replayed"]] == [2, 5]
    for one in moved["replayed"]:
        assert one["foretold"]["tpot_p50_s"] == pytest.approx(one["seen"]["tpot_p50_s"], rel=0.05)
        assert one["foretold"]["output_tokens_per_s"] == pytest.approx(
            one["seen"]["output_tokens_per_s"], rel=0.1
        )


def test_other_hardware_is_faster_by_the_rooflines_and_known_less_well(moved: dict[str, Any]) -> None:
    old, new = moved["before"]["cost"], moved["after"]["cost"]
    assert new["step"]["weights_s"] / old["step"]["weights_s"] == pytest.approx(600 / 4800, rel=0.01)
    assert new["step"]["fixed_s"] == pytest.approx(old["step"]["fixed_s"])
    assert (new["low_factor"], new["high_factor"]) == (0.6, 2.0)
    assert old["high_factor"] < 1.5
    assert moved["is_carried"]
    assert any("roofline" in sentence for sentence in moved["unknown"])


def test_every_figure_has_an_error_bar_of_the_validation_at_least(moved: dict[str, Any]) -> None:
    for quantity, bar in moved["error_bar"].items():
        if quantity == "source":
            continue
        for side in ("before", "after"):
            figure = moved[side]["at"][quantity]
            assert figure["low"] <= figure["likely"] * bar["low"] * (1 + 1e-9)
            assert figure["high"] >= figure["likely"] * bar["high"] * (1 - 1e-9)


def test_the_wall_is_the_nearest_limit(moved: dict[str, Any]) -> None:
    assert moved["after"]["wall"] == "slots"
    assert moved["after"]["n_safe"]["likely"] == 4  # 0.8 of 6


NAMED = NamedServer(model="Qwen2.5-0.5B", gpu="a10-24gb", flags=FLAGS)
SHORT = {
    "name": "short",
    "seed": 1,
    "input_tokens": {"kind": "constant", "tokens": 32},
    "output_tokens": {"kind": "constant", "tokens": 8},
    "stages": [{"users": 1, "hold_s": 60.0}],
}
"""Few steps, and no limits: a page of it takes a second."""


def test_blocks_that_the_named_flags_do_not_make_are_said(tmp_path: Path) -> None:
    shown = {"num_gpu_blocks": "77", "block_size": "16", "gpu_memory_utilization": "0.5"}
    result = run(write_run(quick(), tmp_path, "r5", named=NAMED, server=shown, scenario=SHORT), "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.output)["unknown"][0].startswith("which flags gave the server 77 KV blocks")


def quick() -> FakeRun:
    return FakeRun(stages=(FakeStage(users=8),))


@pytest.mark.parametrize(
    ("named", "arguments", "sentence"),
    [
        (None, ("--tp", "2"), "names no model and GPU"),
        (NamedServer(twin="tiny"), ("--gpu", "h200"), "needs a model and a GPU"),
        (NAMED, ("--engine", "lmdeploy"), "another engine schedules differently"),
        (NAMED, ("--gpu", "h2000"), "did you mean"),
        (NAMED, ("--gpu", "h200,a10"), "--gpu takes one value here"),
        (NAMED, ("--max-model-len", "64"), "exceeds max_model_len 64"),
        (NAMED, ("--tp", "3"), "--tp 3"),
    ],
)
def test_what_cannot_be_said_is_refused_in_one_sentence(
    named: NamedServer | None, arguments: tuple[str, ...], sentence: str, tmp_path: Path
) -> None:
    result = run(write_run(quick(), tmp_path, "r2", named=named), *arguments)
    assert result.exit_code == 2, result.output
    assert sentence in result.output
    assert len(result.output.splitlines()) == 1


def test_a_run_that_only_preempted_does_not_say_what_a_step_costs(tmp_path: Path) -> None:
    crowded = FakeRun(stages=(FakeStage(users=8, preemptions=40, waiting=5.0),))
    result = run(write_run(crowded, tmp_path, "r3", named=NAMED))
    assert result.exit_code == 2
    assert "no stage without queue" in result.output


def test_the_twin_of_a_profile_takes_the_flags_a_profile_has(tmp_path: Path) -> None:
    folder = write_run(quick(), tmp_path, "r4", named=NamedServer(twin="tiny"), scenario=SHORT)
    result = run(folder, "--max-num-seqs", "10", "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.output)
    assert facts["change"] == ["max_num_seqs 128 -> 10"]
    assert facts["after"]["wall"] == "slots"
