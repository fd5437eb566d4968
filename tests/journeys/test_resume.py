"""A sign-off whose every process is killed in its second stage goes on, and one folder holds both parts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from locust_process import wait_for

from loadtest.reporter.stages import windows
from loadtest.results import RunRows, load_results
from loadtest.run_folder import RunFolder

ULLAGE = [sys.executable, "-m", "loadtest.cli", "signoff", "--no-audit"]
# Long answers are rare arrivals: hardly a look sees a request that waits for the running step to end.
SCENARIO = """
name: go-on
seed: 3
input_tokens: {kind: constant, tokens: 64}
output_tokens: {kind: constant, tokens: 64}
settle_s: 1
spawn_rate_per_s: 100
stages:
  - {users: 4, hold_s: 5}
  - {users: 6, hold_s: 5}
  - {users: 8, hold_s: 5}
limits: {ttft_s: 2.0}
twin: tiny
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed:
    """Both runs. `parent` as it was before anybody sealed it."""

    parent: RunFolder
    acknowledged: set[tuple[int, int]]
    child: RunFolder
    rows: RunRows
    err: str
    report: dict[str, Any]


def _runs(home: Path) -> list[Path]:
    return sorted((home / "runs").iterdir()) if (home / "runs").is_dir() else []


def _stages(home: Path) -> int:
    return sum((root / "events.jsonl").read_bytes().count(b'"event":"stage"') for root in _runs(home))


def _acknowledged(folder: RunFolder) -> set[tuple[int, int]]:
    """Requests whose first row the kernel had taken whole."""
    lines = b"".join(path.read_bytes() for path in folder.text_segments()).splitlines(keepends=True)
    rows = (json.loads(line[9:]) for line in lines if line.endswith(b"\n"))
    return {(row["worker"], row["seq"]) for row in rows if row["kind"] == "issued"}


def _end_all_of(folder: RunFolder, command: subprocess.Popen[str]) -> None:
    """The command, and the load that it started in a process group of its own: found by its folder."""
    marked = str(folder.root).encode()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if marked in (process / "cmdline").read_bytes().split(b"\0"):
                os.kill(int(process.name), signal.SIGKILL)
        except (OSError, ValueError):
            continue
    command.kill()
    command.communicate()


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Resumed:
    home = tmp_path_factory.mktemp("resume")
    (home / "scenario.yaml").write_text(SCENARIO)
    options = ["--scenario", str(home / "scenario.yaml"), "--runs-dir", str(home / "runs")]
    first = subprocess.Popen([*ULLAGE, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: bool(_runs(home)) and (_runs(home)[0] / "events.jsonl").is_file(), first)
    parent = RunFolder.open(_runs(home)[0])
    started = b"process_start_time_seconds"  # else nobody could tell its server from the next one
    wait_for(lambda: started in b"".join(path.read_bytes() for path in parent.sample_files()), first)
    wait_for(lambda: _stages(home) == 2, first)
    before = len(_acknowledged(parent))
    wait_for(lambda: len(_acknowledged(parent)) > before + 10, first)
    _end_all_of(parent, first)
    acknowledged = _acknowledged(parent)
    again = subprocess.run(
        [*ULLAGE, "--resume", str(parent.root)], capture_output=True, text=True, timeout=100, cwd=home
    )
    folders = [root for root in _runs(home) if root != parent.root]
    assert len(folders) == 1, again.stderr
    child = RunFolder.open(folders[0])
    report = json.loads(child.report_path("json").read_text(encoding="utf-8"))
    return Resumed(
        parent=parent,
        acknowledged=acknowledged,
        child=child,
        rows=load_results(child),
        err=again.stderr,
        report={**report, "returncode": again.returncode},
    )


def test_every_stage_is_judged_and_none_was_held_twice(resumed: Resumed) -> None:
    assert [window.users for window in windows(resumed.rows.events)] == [4, 6, 8]
    begun = [line for line in resumed.err.splitlines() if line.startswith("stage ")]
    assert begun == ["stage 2 of 3: 6 users", "stage 3 of 3: 8 users"]


def test_every_acknowledged_row_of_both_parts_is_there_once(resumed: Resumed) -> None:
    names = [(row.worker, row.seq) for row in resumed.rows.requests]
    assert len(set(names)) == len(names)
    assert len(resumed.acknowledged) > 20
    assert resumed.acknowledged == {name for name in names if name[0] == 0}
    assert {worker for worker, _ in names} == {0, 1}
    assert resumed.rows.damage.bad_lines == 0


def test_the_verdict_is_that_of_a_run_in_one_piece(resumed: Resumed) -> None:
    """Its server was another process in each part, which is no restart under load."""
    report = resumed.report
    assert report["returncode"] == report["exit_code"]
    assert [stage["users"] for stage in report["observation"]["stages"]] == [4, 6, 8]
    assert not report["observation"]["server_died"]
    # a busy machine may leave too few requests for a proof, or may be late itself; nothing else may be said
    assert report["observation"]["wall"]["name"] in ("none", "client"), report["reason"]


def test_manifest_and_report_name_both_parts(resumed: Resumed) -> None:
    manifest = resumed.child.read_manifest()
    (part,) = manifest.parts
    assert (part.run_id, part.stages_held, manifest.state) == (resumed.parent.run_id, 1, "complete")
    page = resumed.child.report_path("md").read_text(encoding="utf-8")
    assert f"goes on where {part.run_id} was interrupted" in page
    assert resumed.child.run_id in page


def test_what_was_whole_is_refused(resumed: Resumed) -> None:
    asked = [*ULLAGE, "--resume", str(resumed.child.root)]
    refused = subprocess.run(asked, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 2
    assert refused.stderr.strip().endswith(f"is complete: `ullage report {resumed.child.root}`")
    others = subprocess.run([*asked, "--model", "m"], capture_output=True, text=True, timeout=60)
    assert (others.returncode, "leave out --model" in others.stderr) == (2, True)
