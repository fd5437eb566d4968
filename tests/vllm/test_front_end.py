"""A real vLLM whose API front end is starved: the wall is in front of the engine, and never its cache.

Many short streams on two processors, in a session of the server's own: the kernel then shares those
processors among sessions first, and inside this one the engine, which spins, has the better nice value.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from vllm_server import running

SCENARIO = {
    "name": "starved-front-end",
    "input_tokens": 32,
    "output_tokens": 16,
    "settle_s": 4,
    "stages": [{"users": 4, "hold_s": 12}, {"users": 120, "hold_s": 26}],
    "limits": {"goodput": "ttft:300"},
}
"""120 requests of at most 2 blocks each: half of the 511 blocks stay free, and 8 slots."""

AS_IF_ELSEWHERE = ("chrt", "--fifo", "1") if os.geteuid() == 0 else ()
"""The load generator has a machine of its own in real life: here it comes first."""


@pytest.fixture(scope="module")
def report(vllm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    runs = tmp_path_factory.mktemp("runs")
    scenario = runs / "scenario.yaml"
    scenario.write_text(yaml.safe_dump(SCENARIO), encoding="utf-8")
    with running(vllm_folder, is_starved=True) as server:
        done = subprocess.run(
            [
                *AS_IF_ELSEWHERE,
                *(sys.executable, "-m", "loadtest.cli", "signoff", "--host", server.host),
                *("--scenario", scenario, "--runs-dir", runs / "runs", "--max-num-seqs", "128"),
            ],
            stdout=subprocess.PIPE,
            text=True,
            timeout=200,
        )
    print(f"\n{done.stdout}")
    (page,) = runs.glob("runs/*/report.json")
    found: dict[str, Any] = json.loads(page.read_text(encoding="utf-8"))
    return found


def test_a_starved_front_end_is_the_wall_and_never_the_cache(report: dict[str, Any]) -> None:
    wall = report["observation"]["wall"]
    named = [wall["name"], (wall["runner_up"] or {}).get("name")]
    assert "kv" not in named, wall
    # who may not put the client first may see it starved as well, and that must be said first
    is_void = not AS_IF_ELSEWHERE and report["status"] == "VOID" and named[0] == "client"
    assert is_void or named[0] == "network", wall


def test_the_cache_and_the_slots_had_room_meanwhile(report: dict[str, Any]) -> None:
    starved = report["observation"]["stages"][-1]
    assert starved["preemptions"] == 0
    assert starved["kv_usage_max_ratio"] < 0.9
    assert starved["running_max"] < 128
