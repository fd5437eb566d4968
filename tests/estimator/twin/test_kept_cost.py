"""A step cost is kept for one server: its GPU, version and flags are in the file, and decide."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from estimator.calibration import Settings
from estimator.engine_spec import EngineSpec, SpeculativeSpec
from estimator.spec import SpecError
from estimator.twin.cost import ServerCost, StepCost
from estimator.twin.cost_file import LevelKept, MeasuredCost, RunKept, write_cost
from estimator.twin.kept_cost import kept_for, kept_path, recall_cost

SETTINGS = Settings(
    model="Qwen/Qwen3-8B", gpu="h100-80gb", engine="vllm", version="0.32", tp=1, pp=1,
    max_num_batched_tokens=8192, max_num_seqs=256, enforce_eager=False,
)  # fmt: skip
HERE = kept_for(SETTINGS, EngineSpec())
STEP = StepCost(
    fixed_s=0.002, compute_s_per_token=3e-5, weights_s=0.03, context_s_per_token=1e-7, sequence_s=2e-5
)
RUN = RunKept(
    run_id="r1", requests=900, num_gpu_blocks=512, n_kv=31, n_max=34,
    levels=(LevelKept(users=8, foretold={"tpot_p50_s": 0.02}, seen={"tpot_p50_s": 0.021}),),
)  # fmt: skip
MEASURED = MeasuredCost(
    model=HERE.model, engine="vllm", version="0.32.0", measured_at="2026-11-21",
    cost=ServerCost(step=STEP, source="run"), kept_for=HERE, run=RUN,
)  # fmt: skip


@pytest.fixture
def data(tmp_path: Path) -> dict[str, str]:
    environ = {"ULLAGE_CALIBRATION": str(tmp_path / "calibration.json")}
    write_cost(kept_path(HERE, environ), MEASURED)
    return environ


def test_it_is_read_as_it_was_written_for_the_same_server(data: dict[str, str]) -> None:
    assert recall_cost(HERE, data) == MEASURED


def test_the_file_says_which_server(data: dict[str, str]) -> None:
    path = kept_path(HERE, data)
    assert path.name.startswith("Qwen-Qwen3-8B.h100-80gb.vllm.")
    assert "gpu: h100-80gb" in path.read_text()


@pytest.mark.parametrize(
    "other",
    [
        kept_for(replace(SETTINGS, gpu="h200-141gb"), EngineSpec()),
        kept_for(replace(SETTINGS, version="0.31"), EngineSpec()),
        kept_for(replace(SETTINGS, tp=2), EngineSpec(tp=2)),
        kept_for(SETTINGS, EngineSpec(kv_cache_dtype="fp8")),
        kept_for(SETTINGS, EngineSpec(speculative=SpeculativeSpec(method="mtp", num_speculative_tokens=1))),
    ],
)
def test_another_server_gets_nothing(other: object, data: dict[str, str]) -> None:
    assert recall_cost(other, data) is None  # type: ignore[arg-type]


def test_slots_and_memory_change_no_step(data: dict[str, str]) -> None:
    same = kept_for(replace(SETTINGS, max_num_seqs=64), EngineSpec(gpu_memory_utilization=0.8))
    assert recall_cost(same, data) == MEASURED


def test_a_file_moved_to_another_servers_name_is_not_taken(data: dict[str, str]) -> None:
    other = replace(HERE, gpu="h200-141gb")
    kept_path(HERE, data).rename(kept_path(other, data))
    assert recall_cost(other, data) is None


def test_a_broken_file_is_one_sentence(data: dict[str, str]) -> None:
    kept_path(HERE, data).write_text("model: [")
    with pytest.raises(SpecError) as raised:
        recall_cost(HERE, data)
    assert "\n" not in str(raised.value)
