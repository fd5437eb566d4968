"""The whole journey with real parts: the twin on a free port, real Locust, rows, report, exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from loadtest.records import RequestRecord
from loadtest.results import load_results
from loadtest.run_folder import RunFolder

ULLAGE = [sys.executable, "-m", "loadtest.cli"]
SCENARIO = """
name: journey
seed: 3
input_tokens: {kind: constant, tokens: 128}
output_tokens: {kind: constant, tokens: 64}
settle_s: 2
spawn_rate_per_s: 50
stages:
  - {of: guaranteed, ratio: 0.8, hold_s: 8}
  - {of: guaranteed, ratio: 1.0, hold_s: 8}
  - {of: saturation, ratio: 1.5, hold_s: 8}
limits: {ttft_s: 2.0}
twin: tiny
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Journey:
    """What one sign-off left behind."""

    exit_code: int
    out: str
    err: str
    folder: RunFolder


@pytest.fixture(scope="module")
def journey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Journey]:
    home = tmp_path_factory.mktemp("journey")
    (home / "scenario.yaml").write_text(SCENARIO)
    done = subprocess.run(
        [*ULLAGE, "signoff", "--scenario", home / "scenario.yaml", "--runs-dir", home / "runs"],
        capture_output=True,
        text=True,
        timeout=100,
        env=dict(os.environ, COLUMNS="120"),
    )
    folders = list((home / "runs").iterdir()) if (home / "runs").is_dir() else []
    assert len(folders) == 1, done.stderr
    yield Journey(
        exit_code=done.returncode, out=done.stdout, err=done.stderr, folder=RunFolder.open(folders[0])
    )
