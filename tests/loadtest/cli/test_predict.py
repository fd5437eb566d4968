"""`ullage predict` and the twin of a model, as a person and as a machine use them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from estimator.twin.cost import FrontEndCost, ServerCost, StepCost
from estimator.twin.cost_file import MeasuredCost, cost_path, read_cost, write_cost
from loadtest.cli import main

STEP = StepCost(
    fixed_s=0.002, compute_s_per_token=3e-5, weights_s=0.03, context_s_per_token=1e-7, sequence_s=2e-5
)


def scenario(folder: Path, **changes: Any) -> str:
    body: dict[str, Any] = {
        "name": "short",
        "input_tokens": {"tokens": 64},
        "output_tokens": {"tokens": 32},
        "stages": [{"users": 1, "hold_s": 10}],
        "limits": {"ttft_s": 1.0, "tpot_s": 0.5},
    }
    path = folder / "short.yaml"
    path.write_text(yaml.safe_dump(body | changes))
    return str(path)


def run(*arguments: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(main, ["predict", *arguments], env=env)


def kept_cost(folder: Path, engine: Any = "vllm") -> str:
    path = folder / "cost.yaml"
    cost = ServerCost(
        step=STEP,
        front_end=FrontEndCost(request_s=0.25),
        low_factor=0.95,
        high_factor=1.1,
        source="measured on m (vllm 0.32), 2026-11-21T10:00Z",
    )
    measured = MeasuredCost(
        model="m", engine=engine, version="0.32", measured_at="2026-11-21T10:00Z", cost=cost
    )
    write_cost(path, measured)
    return str(path)


LMDEPLOY = ("--gpu", "h100", "--engine", "lmdeploy")
SMALL = (
    "--model",
    "qwen2.5-7b",
    "--gpu",
    "a10",
    "--num-gpu-blocks-override",
    "100",
    "--max-model-len",
    "512",
)


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return run("--scenario", scenario(tmp_path_factory.mktemp("twin")), "--twin", "tiny")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return run("--scenario", scenario(tmp_path_factory.mktemp("model")), *SMALL)


def test_a_page_fits_100_columns_and_names_every_limit(twin: Result, model: Result) -> None:
    for result in (twin, model):
        assert result.exit_code == 0, result.output
        assert max(map(len, result.output.splitlines())) <= 100
        for name in ("N_guaranteed", "N_sustained", "N_saturation", "N_slots", "N_slo", "TTFT", "TPOT"):
            assert name in result.output


def test_a_page_says_which_cost_was_used(twin: Result, model: Result) -> None:
    assert "Cost of a step: configs/engines/tiny.yaml; no range given" in twin.output
    assert (
        "Cost of a step: prior from data sheets, a10-24gb; a step may take 0.6 to 2 times that"
        in model.output
    )


def test_the_json_has_the_figures_of_arithmetic_beside_those_of_the_clock(tmp_path: Path) -> None:
    result = run("--scenario", scenario(tmp_path), *SMALL, "--json")
    facts = json.loads(result.output)
    assert facts["n_guaranteed"]["likely"] == 99 // 6
    assert facts["full_by"] == "kv"
    assert facts["saturation_observed"] == pytest.approx(facts["n_saturation"]["likely"], rel=0.05)
    assert 6 <= len(facts["levels"]) <= 9
    users = [level["users"] for level in facts["levels"]]
    assert users == sorted(users)
    assert 16 in users
    for level in facts["levels"]:
        for value in level.values():
            if isinstance(value, dict):
                assert value["low"] <= value["likely"] <= value["high"]


def test_the_scenarios_own_twin_stands_in(tmp_path: Path, twin: Result) -> None:
    assert run("--scenario", scenario(tmp_path, twin="tiny")).output == twin.output


def test_limits_of_the_command_line_replace_those_of_the_scenario(tmp_path: Path) -> None:
    both = "--scenario", scenario(tmp_path), "--twin", "tiny", "--json"
    asked = run(*both, "--goodput", "ttft:1", "e2el:2000", "--percentile", "90")
    assert asked.exit_code == 0, asked.output
    assert json.loads(asked.output)["n_slo"]["likely"] == 0, "nobody has a first token within 1 ms"
    assert json.loads(run(*both).output)["n_slo"]["likely"] > 0


def test_a_search_is_predicted_once_the_command_line_says_what_is_good(tmp_path: Path) -> None:
    searches = scenario(tmp_path, stages=[], search={}, limits={})
    refused = run("--scenario", searches, "--twin", "tiny")
    assert (refused.exit_code, "or --goodput" in refused.output) == (2, True)
    assert run("--scenario", searches, "--twin", "tiny", "--goodput", "tpot:50").exit_code == 0


def test_a_calibration_replaces_the_prior_and_is_named(tmp_path: Path) -> None:
    page = run("--scenario", scenario(tmp_path), *SMALL, "--calibration", kept_cost(tmp_path)).output
    assert "Cost of a step: measured on m (vllm 0.32), 2026-11-21T10:00Z; a step may take 0.95 to 1.1" in page
    first_row = page.split("in limits\n")[1].splitlines()[0]
    assert float(first_row.split()[1]) > 0.25


def test_a_kept_calibration_is_offered_not_taken_for_it_may_be_another_gpu(tmp_path: Path) -> None:
    data = {"XDG_DATA_HOME": str(tmp_path)}
    kept = cost_path("Qwen2.5-7B-Instruct", "vllm", data)
    write_cost(kept, read_cost(Path(kept_cost(tmp_path))))
    page = run("--scenario", scenario(tmp_path), *SMALL, env=data).output
    assert "prior from data sheets" in page
    assert f"if that was this GPU, use --calibration {kept}" in " ".join(page.split())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "give --model and --gpu, or --twin"),
        (("--model", "qwen2.5-7b"), "give both --model and --gpu"),
        (("--gpu", "a10"), "give both --model and --gpu"),
        (("--twin", "tyni"), "did you mean 'tiny'"),
        (("--twin", "tiny", "--model", "qwen2.5-7b", "--gpu", "a10"), "not both"),
        (("--twin", "tiny", "--tp", "2"), "--tensor-parallel-size belongs to --model and --gpu"),
        (("--model", "qwen2.5-7b", "--gpu", "a10", "--watermark", "1.5"), "watermark must be a share"),
        (("--model", "qwen2.5-7b", "--gpu", "a10,l4"), "--gpu takes one value here"),
        (("--model", "qwen2.5-7b", "--gpu", "a10", "--max-model-len", "90"), "exceeds max_model_len 90"),
        ((*LMDEPLOY, "--model", "gemma-3-27b", "--backend", "pytorch"), "the twin does not model LMDeploy's"),
        ((*LMDEPLOY, "--model", "qwen3-8b", "--watermark", "0.1"), "are vLLM's; leave them out"),
        (("--twin", "tiny", "--calibration", "missing.yaml"), "there is no missing.yaml; make it with"),
    ],
)
def test_what_cannot_be_used_ends_in_one_sentence_and_exit_code_2(
    arguments: tuple[str, ...], sentence: str, tmp_path: Path
) -> None:
    result = run("--scenario", scenario(tmp_path), *arguments)
    assert result.exit_code == 2
    assert sentence in result.output
    assert result.output.startswith("ullage: ")
    assert len(result.output.splitlines()) == 1


def test_a_cost_of_another_engine_is_refused(tmp_path: Path) -> None:
    cost = kept_cost(tmp_path, engine="lmdeploy")
    result = run("--scenario", scenario(tmp_path), *SMALL, "--calibration", cost)
    assert result.exit_code == 2
    assert "was measured on lmdeploy, not vllm" in result.output


def test_without_limits_there_is_no_n_slo(tmp_path: Path) -> None:
    result = run("--scenario", scenario(tmp_path, limits={}), "--twin", "tiny")
    assert "N_slo " not in result.output
    assert "in limits" not in result.output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--model", "qwen2.5-7b"), "give both --model and --gpu"),
        (("--model", "qwen2.5-7b", "--gpu", "a10", "--profile", "tiny"), "not both"),
        (("--model=qwen2.5-72b", "--gpu", "a10"), "does not fit on a10-24gb"),
        (("--model", "qwen2.5-7b", "--gpu", "a10", "--time-scale", "0"), "--time-scale must be more than 0"),
        (("--model", "qwen2.5-7b", "--gpu", "a10", "--watermark", "2"), "watermark must be a share"),
    ],
)
def test_a_twin_of_a_model_is_refused_in_one_sentence(
    arguments: tuple[str, ...], sentence: str, capfd: pytest.CaptureFixture[str]
) -> None:
    result = CliRunner().invoke(main, ["twin", *arguments])
    said = result.output + capfd.readouterr().err
    assert result.exit_code == 2
    assert sentence in said
