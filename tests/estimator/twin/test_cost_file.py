"""The file of a measured cost: what was written is read, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import pytest

from estimator.spec import SpecError
from estimator.twin.cost import FrontEndCost, ServerCost, StepCost
from estimator.twin.cost_file import MeasuredCost, cost_path, read_cost, write_cost

MEASURED = MeasuredCost(
    model="Qwen/Qwen2.5-7B",
    engine="vllm",
    version="0.32.0",
    measured_at="2026-11-21T11:30Z",
    cost=ServerCost(
        step=StepCost(
            fixed_s=0.002, compute_s_per_token=3e-5, weights_s=0.0, context_s_per_token=2e-8, sequence_s=0.0
        ),
        front_end=FrontEndCost(request_s=0.004, step_s=1e-4, chunk_s=2e-5),
        low_factor=0.9,
        high_factor=1.2,
        source="measured on Qwen/Qwen2.5-7B (vllm 0.32.0), 2026-11-21T11:30Z",
    ),
)


def test_a_cost_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "cost.yaml"
    write_cost(path, MEASURED)
    assert read_cost(path) == MEASURED


def test_each_model_and_engine_has_a_file_of_its_own(tmp_path: Path) -> None:
    home = {"ULLAGE_CALIBRATION": str(tmp_path / "calibration.json")}
    path = cost_path("Qwen/Qwen2.5-7B", "vllm", home)
    assert path == tmp_path / "step-costs" / "Qwen-Qwen2.5-7B.vllm.yaml"
    assert cost_path("../../etc/passwd", "vllm", home).parent == path.parent


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: [", "is not YAML"),
        ("[]", "the file"),
        ("format: 2", "model"),
    ],
)
def test_something_else_is_refused_in_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "cost.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SpecError, match=said) as caught:
        read_cost(path)
    assert "\n" not in str(caught.value)


def test_a_mistyped_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cost.yaml"
    write_cost(path, MEASURED)
    path.write_text(path.read_text(encoding="utf-8").replace("chunk_s", "chunks_s"), encoding="utf-8")
    with pytest.raises(SpecError, match="chunks_s"):
        read_cost(path)


def test_a_newer_format_asks_to_calibrate_again(tmp_path: Path) -> None:
    path = tmp_path / "cost.yaml"
    write_cost(path, MEASURED)
    path.write_text(path.read_text(encoding="utf-8").replace("format: 1", "format: 2"), encoding="utf-8")
    with pytest.raises(SpecError, match="calibrate again"):
        read_cost(path)


def test_a_missing_file_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="ullage calibrate"):
        read_cost(tmp_path / "none.yaml")
