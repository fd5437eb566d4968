"""`ullage gate`: the baseline is small, says what it is of, and a run that is worse fails."""

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


def ullage(*words: str | Path) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture
def baseline(tmp_path: Path) -> Path:
    run = write_run(RUN, tmp_path, "first")
    done = ullage("gate", run, "--baseline", tmp_path / "baseline.json", "--write-baseline")
    assert done.exit_code == 0, done.output
    assert "N_safe 24 (PASS) of first is the baseline" in done.output
    return tmp_path / "baseline.json"


def test_the_baseline_is_small_and_can_be_read(baseline: Path) -> None:
    body = json.loads(baseline.read_text(encoding="ascii"))
    assert baseline.stat().st_size < 20_000
    assert (body["format"], body["model"], body["n_safe"]["value"], body["n_max"]["value"]) == (
        1,
        "tiny",
        24,
        30,
    )
    assert body["n_max"]["high"] == 43
    assert [level["users"] for level in body["levels"]] == [20, 30, 44]
    assert body["levels"][0]["figures"]["ttft_p95_s"]["value"] == 0.2
    assert body["versions"] == {"ullage": "0.1.0"}


def test_a_repeated_run_passes(baseline: Path, tmp_path: Path) -> None:
    done = ullage("gate", write_run(RUN, tmp_path, "second"), "--baseline", baseline)
    assert done.exit_code == 0, done.output
    assert "SAME" in done.output


def test_a_run_that_is_worse_fails_and_says_what_fell(baseline: Path, tmp_path: Path) -> None:
    worse = dataclasses.replace(RUN, stages=(FakeStage(users=20, preemptions=9), *STAGES[1:]))
    done = ullage("gate", write_run(worse, tmp_path, "worse"), "--baseline", baseline)
    assert done.exit_code == 1, done.output
    assert "N_safe fell by 100.0%, from 24 to 0" in done.output


def test_a_slower_answer_fails(baseline: Path, tmp_path: Path) -> None:
    stages = (dataclasses.replace(STAGES[0], e2e_s=6.0), *STAGES[1:])
    done = ullage(
        "gate", write_run(dataclasses.replace(RUN, stages=stages), tmp_path, "slow"), "--baseline", baseline
    )
    assert done.exit_code == 1, done.output
    assert "TPOT p50 at 20 users rose by" in done.output


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot read the baseline"),
        ("", "is no baseline"),
        ('{"format": 1}', "is no baseline"),
        ("[" * 100_000, "is no baseline"),
    ],
)
def test_a_file_that_is_no_baseline_is_one_sentence_with_the_way_out(
    content: str | None, sentence: str, tmp_path: Path
) -> None:
    file = tmp_path / "baseline.json"
    if content is not None:
        file.write_text(content)
    done = ullage("gate", write_run(RUN, tmp_path, "run"), "--baseline", file)
    assert done.exit_code == 2
    assert sentence in done.output
    assert "--write-baseline" in done.output
    assert len(done.output.splitlines()) == 1


def test_a_baseline_of_a_later_format_is_refused(baseline: Path, tmp_path: Path) -> None:
    body = json.loads(baseline.read_text(encoding="ascii"))
    baseline.write_text(json.dumps({**body, "format": 2}))
    done = ullage("gate", write_run(RUN, tmp_path, "run"), "--baseline", baseline)
    assert done.exit_code == 2
    assert "has format 2, this version reads 1" in done.output


def test_a_void_run_is_no_baseline(tmp_path: Path) -> None:
    run = write_run(dataclasses.replace(RUN, loop_lag_s=0.5), tmp_path, "void")
    done = ullage("gate", run, "--baseline", tmp_path / "b.json", "--write-baseline")
    assert done.exit_code == 2
    assert "void is VOID" in done.output
    assert not (tmp_path / "b.json").exists()
