"""A soak of seconds with real parts: a server that keeps KV blocks fails, and one that does not does not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from locust_process import answers_of, run_of, start_locust, wait_for

from loadtest.conductor.server_facts import read_server
from loadtest.origin import parse_origin
from loadtest.results import load_results
from loadtest.run_folder import RunFolder

pytestmark = pytest.mark.timeout(300)  # a busy machine starts five processes of Python for each soak
ULLAGE = [sys.executable, "-m", "loadtest.cli"]
SCENARIO = """
name: soak-journey
seed: 3
input_tokens: {kind: constant, tokens: 64}
output_tokens: {kind: constant, tokens: 16}
settle_s: 1
spawn_rate_per_s: 50
stages: [{users: 1, hold_s: 5}]
"""
SECONDS = ("--hours", str(24 / 3600), "--dip-every", str(12 / 60), "--dip", "4")
LEAK = "faults: [{name: leak, argument: '1', every: 10}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Soaked:
    exit_code: int
    out: str
    err: str
    folder: RunFolder
    finished: float = 0.0
    """Requests that the server itself says it answered whole."""

    @property
    def report(self) -> Any:
        return json.loads(self.folder.report_path("json").read_text(encoding="utf-8"))

    def drift(self, name: str) -> Any:
        (found,) = (one for one in self.report["drift"]["quantities"] if one["quantity"]["name"] == name)
        return found


@contextmanager
def twin(*options: str) -> Iterator[str]:
    command = [sys.executable, "-m", "estimator.twin.server", "--port", "0", "--exit-with-stdin", *options]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        yield server.stdout.readline().split()[3]
    finally:
        server.terminate()
        server.communicate()


def start_soak(home: Path, host: str, *options: str) -> subprocess.Popen[str]:
    (home / "scenario.yaml").write_text(SCENARIO)
    command = [*ULLAGE, "soak", "--scenario", str(home / "scenario.yaml"), "--runs-dir", str(home / "runs")]
    return subprocess.Popen(
        [*command, "--host", host, "--users", "4", "--no-audit", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ, COLUMNS="120"),
    )


def ended(soak: subprocess.Popen[str], home: Path) -> Soaked:
    out, err = soak.communicate(timeout=200)
    folders = list((home / "runs").iterdir()) if (home / "runs").is_dir() else []
    assert len(folders) == 1, err
    return Soaked(exit_code=soak.returncode, out=out, err=err, folder=RunFolder.open(folders[0]))


@pytest.fixture(scope="module")
def leaking(tmp_path_factory: pytest.TempPathFactory) -> Soaked:
    home = tmp_path_factory.mktemp("leaking")
    (home / "faults.yaml").write_text(LEAK)
    with twin("--faults", str(home / "faults.yaml")) as host:
        return ended(start_soak(home, host, *SECONDS), home)


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Soaked:
    home = tmp_path_factory.mktemp("healthy")
    with twin() as host:
        soaked = ended(start_soak(home, host, *SECONDS), home)
        reading = read_server(parse_origin(host), None).reading
    assert reading is not None
    return replace(soaked, finished=reading.signals["requests_finished_total"])


def test_a_server_that_keeps_its_kv_blocks_fails_even_a_soak_of_seconds(leaking: Soaked) -> None:
    assert (leaking.exit_code, leaking.report["status"]) == (1, "FAIL"), leaking.out
    idle = leaking.drift("kv_idle")
    assert idle["status"] == "drifts"
    assert idle["blocks"] >= 2
    assert idle["rise_per_h"]["slope"] > 0
    assert "of the blocks stay in use while nothing runs" in leaking.out


def test_a_healthy_server_gives_everything_back_and_a_soak_of_seconds_says_it_is_too_short(
    healthy: Soaked,
) -> None:
    idle = healthy.drift("kv_idle")
    assert (idle["status"], idle["rise_projected"]) == ("steady", 0.0)
    assert idle["blocks"] >= 2
    # a machine too busy to carry four users says VOID, and nothing else
    assert (healthy.report["status"], healthy.exit_code) in (("INCONCLUSIVE", 4), ("VOID", 5)), healthy.out
    assert "TOO SHORT TO TELL" in healthy.out


def test_the_plan_holds_and_dips_and_nothing_is_asked_in_a_dip(healthy: Soaked) -> None:
    stages = healthy.folder.read_manifest().stages
    assert [stage.users for stage in stages] == [4, 0, 4, 0]
    assert "stage 2 of 4: a dip, nothing is asked" in healthy.err
    assert [spell["users_set"] for spell in healthy.report["spells"]] == [4, 4]


def test_the_server_answered_exactly_the_requests_that_have_a_good_row(healthy: Soaked) -> None:
    outcomes = [request.outcome for request in load_results(healthy.folder).requests]
    assert healthy.finished == outcomes.count("ok") > 20


def test_the_report_of_a_soak_is_made_again_from_its_rows(healthy: Soaked) -> None:
    page = healthy.folder.report_path("html").read_bytes()
    again = subprocess.run([*ULLAGE, "report", healthy.folder.root], capture_output=True, text=True)
    assert (again.returncode, again.stdout) == (healthy.exit_code, healthy.out)
    assert healthy.folder.report_path("html").read_bytes() == page


def test_a_soak_signs_no_number_for_the_next_one(healthy: Soaked) -> None:
    command = [*ULLAGE, "soak", "--hours", "1", "--run", str(healthy.folder.root)]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "is a soak, which signs no number" in refused.stderr


def test_one_interrupt_ends_a_soak_in_order_with_a_report_of_what_was_seen(tmp_path: Path) -> None:
    with twin() as host:
        soak = start_soak(tmp_path, host, "--hours", "1")
        wait_for(lambda: answers_of(tmp_path) > 0, soak)
        soak.send_signal(signal.SIGINT)
        soaked = ended(soak, tmp_path)
    assert soaked.exit_code == 130
    assert soaked.report["is_complete"] is False
    assert soaked.out.splitlines()[-1].startswith("SOAK")


def test_locust_soaks_as_well(tmp_path: Path) -> None:
    (tmp_path / "scenario.yaml").write_text(SCENARIO)
    with twin() as host:
        ours = ("--headless", "--only-summary", "--scenario", "scenario.yaml", "--runs-dir", "runs")
        soak = ("--load", "soak", "-u", "3", "--soak-hours", str(10 / 3600), "--host", host)
        _, errors = (process := start_locust(tmp_path, [*ours, *soak])).communicate(timeout=200)
    assert process.returncode == 0, errors
    users = [event.data["users"] for event in run_of(tmp_path)[1].events if event.event == "stage"]
    assert users == [3, 0, 3, 0]
