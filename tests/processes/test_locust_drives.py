"""Real Locust drives real users against a small server on loopback: what a person types is what happens.

Locust patches the process it is imported into, so it runs in processes of its own here.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from locust_process import REPOSITORY, run_of, start_locust, two_processes
from token_server import TOKEN_S, token_server

from loadtest.results import RunRows

SCENARIO = """
name: short
input_tokens: {kind: constant, tokens: 8}
output_tokens: {kind: constant, tokens: 2}
settle_s: 0.5
spawn_rate_per_s: 100
stages: [{users: 6, hold_s: 2}, {users: 3, hold_s: 1}]
"""


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    with token_server() as server:
        yield server.url


def locust(
    home: Path, *options: str, scenario: str = SCENARIO, file_bytes_max: int | None = None
) -> subprocess.Popen[str]:
    (home / "short.yaml").write_text(scenario)

    def small_disk() -> None:
        if file_bytes_max is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes_max, file_bytes_max))

    ours = ("--headless", "--only-summary", "--scenario", "short.yaml", "--runs-dir", "runs")
    return start_locust(home, [*ours, *options], prepare=small_disk)


def stages(rows: RunRows) -> list[object]:
    return [event.data["users"] for event in rows.events if event.event == "stage"]


@pytest.mark.parametrize("workers", [1, 2])
def test_with_nothing_but_a_host_the_scenarios_stages_drive_and_every_row_is_whole(
    tmp_path: Path, host: str, workers: int
) -> None:
    options = two_processes() if workers == 2 else ()
    _, errors = (process := locust(tmp_path, "--host", host, *options)).communicate(timeout=60)
    folder, rows = run_of(tmp_path)
    assert (process.returncode, folder.read_manifest().state) == (0, "complete"), errors
    assert stages(rows) == [6, 3]
    assert Counter(request.outcome for request in rows.requests) == {"ok": len(rows.requests)}
    assert {request.worker for request in rows.requests} == set(range(workers))
    assert len({sample.target for sample in rows.samples if sample.source == "client"}) == workers
    assert all(request.ttft_s is not None and request.e2e_s >= TOKEN_S for request in rows.requests)


def test_users_rate_and_time_on_the_command_line_go_before_the_stages(tmp_path: Path, host: str) -> None:
    output, errors = locust(tmp_path, "--host", host, "-u", "4", "-r", "50", "-t", "2s").communicate(
        timeout=60
    )
    folder, rows = run_of(tmp_path)
    assert stages(rows) == [4], errors
    assert folder.read_manifest().state == "complete"
    assert f"ullage report runs/{folder.run_id}" in output
    assert "TTFT" in errors + output


def test_a_disk_that_refuses_rows_stops_the_load_with_one_sentence(tmp_path: Path, host: str) -> None:
    process = locust(tmp_path, "--host", host, "-u", "6", "-r", "50", "-t", "600s", file_bytes_max=12_000)
    _, errors = process.communicate(timeout=60)  # long before its ten minutes are over
    told = [line for line in errors.splitlines() if line.startswith("ullage: ")]
    assert process.returncode == 2
    assert any("cannot write" in line and "free space" in line for line in told), errors


@pytest.mark.parametrize(
    ("options", "words", "code"),
    [
        (("--host", "http://127.0.0.1:9"), "cannot reach", 3),
        (("--model", "other"), "does not serve 'other'", 2),
        (("--scenario", "missing.yaml"), "cannot read missing.yaml", 2),
        (("--engine", "lmdeploy"), "set endpoint: chat", 2),
    ],
)
def test_what_cannot_start_says_why_in_one_sentence(
    tmp_path: Path, host: str, options: Sequence[str], words: str, code: int
) -> None:
    process = locust(tmp_path, "--host", host, *options)
    _, errors = process.communicate(timeout=60)
    (told,) = [line for line in errors.splitlines() if line.startswith("ullage: ")]
    assert words in told
    assert process.returncode == code
    assert "Traceback" not in errors


RAMP = """
from loadtest.conductor.ramp import ScenarioRamp
from loadtest.run_folder import PlannedStage

STAGE = PlannedStage(index=0, label="s", users=7, hold_s=9.0, settle_s=1.0, spawn_rate_per_s=5.0)

class Lead:
    def __init__(self, *, can_start=True):
        self.is_open, self.can_start, self.begun, self.plan = False, can_start, 0, [STAGE, None]
    def begin(self):
        self.begun += 1
        self.is_open = self.can_start
        return self.can_start
    def stage(self, elapsed_s):
        return self.plan.pop(0)

class Ramp(ScenarioRamp):
    pass

ramp = Ramp()
assert ramp.tick() is None, "without anybody who leads there is no load"
ramp.lead = lead = Lead()
assert (ramp.tick(), ramp.tick(), lead.begun) == ((7, 5.0), None, 1)
lead.is_open, lead.plan = False, [STAGE]  # stopped on the web page, then started again
assert (ramp.tick(), lead.begun) == ((7, 5.0), 2)
ramp.lead = Lead(can_start=False)
assert ramp.tick() is None, "a run that cannot start has no load"
assert Ramp.abstract is False and ScenarioRamp.abstract is True
"""


def test_the_ramp_opens_each_run_once_and_starts_again_after_a_stop() -> None:
    done = subprocess.run(
        [sys.executable, "-c", RAMP],
        capture_output=True,
        text=True,
        env=dict(os.environ, PYTHONPATH=str(REPOSITORY)),
    )
    assert done.returncode == 0, done.stderr
