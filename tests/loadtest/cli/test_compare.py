"""`ullage compare` on run folders: what fell is named, and the exit code says whether it is sure."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from fake_folder import write_run
from fake_run import FakeRun, FakeStage

from loadtest.cli import main

STAGES = (
    FakeStage(users=20, ttft_s=0.2),
    FakeStage(users=30, ttft_s=0.2),
    FakeStage(users=44, preemptions=5, kv_usage_ratio=1.0),
)
RUN = FakeRun(stages=STAGES)


def changed(index: int, **fields: float) -> FakeRun:
    """RUN with one stage that differs."""
    stages = list(STAGES)
    stages[index] = dataclasses.replace(stages[index], **fields)  # type: ignore[arg-type]
    return dataclasses.replace(RUN, stages=tuple(stages))


def ullage(*words: str | Path) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return write_run(RUN, tmp_path, "old")


def test_a_run_is_the_same_as_itself(old: Path) -> None:
    before = sorted(path.name for path in old.rglob("*"))
    done = ullage("compare", old, old)
    assert done.exit_code == 0, done.output
    assert "SAME: no figure is worse by more than 5%." in done.output
    assert "at 20 users" in done.output
    assert "at 44 users" not in done.output  # it never held: no promise to keep
    assert sorted(path.name for path in old.rglob("*")) == before


def test_a_slower_first_token_is_a_regression_that_is_named(old: Path, tmp_path: Path) -> None:
    new = write_run(changed(1, ttft_s=0.26), tmp_path, "new")
    done = ullage("compare", old, new)
    assert done.exit_code == 1, done.output
    assert "WORSE by more than 5%, and not by chance:" in done.output
    assert "TTFT p50 at 30 users rose by 30.0%, from 200.0 ms to 260.0 ms" in done.output
    assert "at 20 users rose" not in done.output
    assert ullage("compare", new, old).exit_code == 0  # the other way round it is better
    assert ullage("compare", old, new, "--tolerance", "35").exit_code == 0


def test_a_limit_that_fell_is_named_first(old: Path, tmp_path: Path) -> None:
    new = write_run(changed(1, preemptions=5), tmp_path, "new")
    done = ullage("compare", old, new)
    assert done.exit_code == 1, done.output
    # from 30 held, 44 not, to 20 held, 30 not: at best 29 of at least 30
    assert "N_max fell by 33.3%, from 30 to 20 (95% interval -53.5% to -3.3%)" in done.output


def test_a_limit_whose_bracket_is_wide_cannot_be_told(old: Path, tmp_path: Path) -> None:
    stages = (STAGES[0], STAGES[2])
    new = write_run(dataclasses.replace(RUN, stages=stages), tmp_path, "new")
    done = ullage("compare", old, new)
    assert done.exit_code == 4, done.output
    assert "CANNOT BE TOLD:" in done.output
    assert (
        "N_max fell by 33.3%, from 30 to 20 (95% interval -53.5% to +43.3%), which may be noise"
        in done.output
    )


def test_runs_without_a_common_concurrency_cannot_be_told(old: Path, tmp_path: Path) -> None:
    stages = (FakeStage(users=21), FakeStage(users=31), STAGES[2])
    done = ullage("compare", old, write_run(dataclasses.replace(RUN, stages=stages), tmp_path, "new"))
    assert done.exit_code == 4, done.output
    assert "no concurrency is common to both runs" in done.output


def test_a_void_run_proves_nothing(old: Path, tmp_path: Path) -> None:
    new = write_run(dataclasses.replace(changed(1, ttft_s=0.26), loop_lag_s=0.5), tmp_path, "new")
    done = ullage("compare", old, new)
    assert done.exit_code == 4, done.output
    assert "new is VOID" in done.output


def test_another_workload_is_refused_by_the_key_that_differs(old: Path, tmp_path: Path) -> None:
    scenario = {**RUN.manifest.scenario, "seed": 8, "failure_pause_s": 2.0}
    new = write_run(RUN, tmp_path, "new", scenario=scenario)
    done = ullage("compare", old, new)
    assert done.exit_code == 2
    assert "seed: 7 -> 8" in done.output
    assert "scenario.failure_pause_s: 1.0 -> 2.0" in done.output
    assert "--allow-different" in done.output
    allowed = ullage("compare", old, new, "--allow-different")
    assert allowed.exit_code == 0, allowed.output
    assert "seed: 7 -> 8" in allowed.output


def test_another_version_is_shown_and_compared(old: Path, tmp_path: Path) -> None:
    new = write_run(RUN, tmp_path, "new", versions={"ullage": "0.1.0", "vllm": "0.32.0\x1b[31m"})
    done = ullage("compare", old, new)
    assert done.exit_code == 0, done.output
    assert "versions.vllm: not set -> 0.32.0" in done.output
    assert "\x1b" not in done.output


def test_machines_get_every_figure_with_its_interval(old: Path, tmp_path: Path) -> None:
    new = write_run(changed(1, ttft_s=0.26), tmp_path, "new")
    done = ullage("compare", old, new, "--json")
    body = json.loads(done.stdout)
    assert (done.exit_code, body["answer"], body["exit_code"]) == (1, "worse", 1)
    (change,) = (one for one in body["changes"] if one["name"] == "ttft_p95_s" and one["users"] == 30)
    assert change["answer"] == "worse"
    assert change["ratio"] == pytest.approx(0.3)
    assert change["low"] == pytest.approx(0.3)


def test_what_is_no_run_folder_is_one_sentence(old: Path, tmp_path: Path) -> None:
    done = ullage("compare", old, tmp_path / "nowhere")
    assert done.exit_code == 2
    assert "nowhere is not a run folder" in done.output
