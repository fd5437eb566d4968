"""What a signed run teaches: the next prediction of the same server is another one, and says from where."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from fake_folder import write_run
from fake_run import FakeRun, FakeStage
from twin_folder import BLOCKS_FEWER, FLAGS, write_named_run

from estimator.engine_spec import EngineSpec
from loadtest.cli import main
from loadtest.cli.signoff import lasting, requested, signoff
from loadtest.named_server import NamedServer

SERVER = ("--model", "Qwen2.5-0.5B", "--gpu", "a10", "--max-model-len", "1024", "--max-num-seqs", "6")


def ullage(store: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, env={"ULLAGE_CALIBRATION": str(store / "calibration.json")})


def predicted(store: Path, *more: str) -> tuple[dict[str, Any], str]:
    """The page for machines, and what stood beside it."""
    path = store.parent / "short.yaml"
    body = {
        "name": "short",
        "input_tokens": {"tokens": 64},
        "output_tokens": {"tokens": 32},
        "stages": [{"users": 1, "hold_s": 10}],
    }
    path.write_text(yaml.safe_dump(body))
    result = ullage(store, "predict", "--scenario", str(path), *SERVER, "--json", *more)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout), result.stderr


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_named_run(tmp_path_factory.mktemp("signed"), "r1")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, signed: Path) -> Path:
    folder = tmp_path_factory.mktemp("home") / "store"
    kept = ullage(folder, "calibrate", "--from-run", str(signed))
    assert kept.exit_code == 0, kept.output
    assert len(kept.output.splitlines()) == 2
    assert "the memory of Qwen2.5-0.5B-Instruct on a10-24gb" in kept.output
    assert "what a step costs, by 2 stages" in kept.output
    return folder


def test_the_next_prediction_is_another_one_and_names_file_and_day(store: Path) -> None:
    before, quiet = predicted(store, "--no-calibration")
    after, said = predicted(store)
    assert quiet == ""
    assert after["cost"]["step"]["weights_s"] == pytest.approx(
        1.6 * before["cost"]["step"]["weights_s"], rel=0.1
    )
    assert after["cost"]["source"].startswith("measured by r1 (vllm 0.32.0), ")
    assert re.search(r"step cost: measured by r1 .* kept \d{4}-\d\d-\d\d in .*a10-24gb\.vllm\..*\.yaml", said)
    assert re.search(r"memory: calibrated .*, \d{4}-\d\d-\d\d, from .*calibration\.json", said)


def test_the_next_estimate_has_the_blocks_that_the_server_showed(store: Path) -> None:
    def blocks(*more: str) -> int:
        result = ullage(store, "estimate", *SERVER[1:], "--json", *more)
        found: int = json.loads(result.stdout)["num_blocks"]
        return found

    assert blocks() == blocks("--no-calibration") - BLOCKS_FEWER


@pytest.mark.parametrize("flag", [("--kv-cache-dtype", "fp8"), ("--enforce-eager",)])
def test_other_flags_are_another_server(store: Path, flag: tuple[str, ...]) -> None:
    facts, said = predicted(store, *flag)
    assert facts["cost"]["source"].startswith("prior")
    assert "step cost" not in said


def test_the_file_holds_what_was_foretold_beside_what_was_seen(store: Path) -> None:
    (path,) = (store / "step-costs").iterdir()
    body = yaml.safe_load(path.read_text())
    assert body["kept_for"]["gpu"] == "a10-24gb"
    assert body["kept_for"]["version"] == "0.32"
    assert [level["users"] for level in body["run"]["levels"]] == [2, 5]
    assert body["run"]["n_max"] == 5


def test_a_broken_store_is_named_and_left_aside(store: Path, tmp_path: Path) -> None:
    broken = tmp_path / "store"
    (broken / "step-costs").mkdir(parents=True)
    (broken / "calibration.json").write_text("{")
    for path in (store / "step-costs").iterdir():
        (broken / "step-costs" / path.name).write_text("cost: [")
    facts, said = predicted(broken)
    assert facts["cost"]["source"].startswith("prior")
    assert len(said.splitlines()) == 2
    assert said.count("predicting without it") == 2
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("manifest", "sentence"),
    [
        ({"named": None}, "names no model and GPU"),
        ({"named": NamedServer(twin="tiny")}, "was of a simulated server"),
        ({"versions": {"server": "0.32.0+twin"}}, "was of a simulated server"),
    ],
)
def test_a_run_that_teaches_nothing_is_refused(
    manifest: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    named = NamedServer(model="Qwen2.5-0.5B", gpu="a10-24gb", flags=FLAGS)
    told = {"named": named, "versions": {"server": "0.32.0"}} | manifest
    folder = write_run(FakeRun(stages=(FakeStage(users=8),)), tmp_path, "r2", **told)
    result = ullage(tmp_path / "store", "calibrate", "--from-run", str(folder))
    assert result.exit_code == 2
    assert sentence in result.output
    assert not (tmp_path / "store").exists()


def test_calibrate_takes_a_server_or_a_run(tmp_path: Path) -> None:
    result = ullage(tmp_path, "calibrate")
    assert result.exit_code == 2
    assert "--host of a running server, or --from-run" in result.output


def test_a_sign_off_keeps_what_was_named_of_the_server() -> None:
    server = ["--model-config", "Qwen2.5-7B", "--gpu", "h100", "--tp", "2"]
    asked = signoff.make_context("signoff", ["--scenario", "chat", "--no-calibration", *server])
    named = requested(asked.params).named
    assert named == NamedServer(model="Qwen2.5-7B", gpu="h100-80gb", flags=EngineSpec(tp=2))


def test_a_model_named_by_its_path_is_found_from_any_folder(tmp_path: Path) -> None:
    assert lasting("Qwen2.5-7B") == "Qwen2.5-7B"
    assert lasting(str(tmp_path / ".." / tmp_path.name)) == str(tmp_path)
