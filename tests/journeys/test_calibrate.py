"""`ullage calibrate` against a live twin whose cost is known: what it measures must predict that twin."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from estimator.twin.cost import step_seconds
from estimator.twin.cost_file import MeasuredCost, read_cost
from estimator.twin.profile import read_profile
from loadtest.conductor.signoff import running_twin

TRUTH = read_profile("tiny").step_cost
MINUTES_S_MAX = 180.0


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> MeasuredCost:
    folder = tmp_path_factory.mktemp("calibrate")
    with running_twin("tiny") as host:
        done = subprocess.run(
            [sys.executable, "-m", "loadtest.cli", "calibrate", "--host", host],
            env={**os.environ, "ULLAGE_CALIBRATION": str(folder / "calibration.json")},
            capture_output=True,
            text=True,
            timeout=MINUTES_S_MAX,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert "prompt tokens" in done.stdout
    return read_cost(folder / "step-costs" / "tiny.vllm.yaml")


@pytest.mark.parametrize(
    ("prefill_tokens", "decoding", "context_tokens"),
    [(512, 0, 512), (1500, 0, 1500), (0, 1, 100), (0, 8, 2000), (0, 32, 8000), (256, 24, 6000)],
)
def test_the_measured_cost_predicts_the_steps_of_the_server(
    measured: MeasuredCost, prefill_tokens: int, decoding: int, context_tokens: int
) -> None:
    """Within a third: the twin's own work and a busy machine are in what clients see."""
    pairs = prefill_tokens**2 // 2
    found = step_seconds(measured.cost.step, prefill_tokens, decoding, context_tokens, pairs)
    assert found == pytest.approx(
        step_seconds(TRUTH, prefill_tokens, decoding, context_tokens, pairs), rel=1 / 3
    )


def test_it_says_whose_cost_it_is(measured: MeasuredCost) -> None:
    assert (measured.model, measured.engine) == ("tiny", "vllm")
    assert "measured on tiny" in measured.cost.source


def test_a_server_that_is_not_there_is_unreachable() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "loadtest.cli", "calibrate", "--host", "http://127.0.0.1:9"],
        capture_output=True,
        text=True,
        timeout=MINUTES_S_MAX,
        check=False,
    )
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert "cannot reach" in done.stderr
