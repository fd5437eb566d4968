"""The whole journey with real parts: the twin on a free port, real Locust, rows, report, exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise

import pytest

from loadtest.results import load_results
from loadtest.run_folder import RunFolder

ULLAGE = [sys.executable, "-m", "loadtest.cli"]
SCENARIO = """
name: journey
seed: 3
input_tokens: {kind: constant, tokens: 128}
output_tokens: {kind: uniform, min: 32, max: 96}
settle_s: 2
spawn_rate_per_s: 50
stages:
  - {of: guaranteed, ratio: 0.8, hold_s: 14}
  - {of: guaranteed, ratio: 1.0, hold_s: 7}
  - {of: saturation, ratio: 1.5, hold_s: 7}
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
def journey(tmp_path_factory: pytest.TempPathFactory) -> Journey:
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
    return Journey(
        exit_code=done.returncode, out=done.stdout, err=done.stderr, folder=RunFolder.open(folders[0])
    )


def test_the_five_lines_end_with_a_signed_number(journey: Journey) -> None:
    lines = journey.out.splitlines()
    assert [line.split()[0] for line in lines] == ["Predicted", "Observed", "Gap", "Client", "SIGN-OFF"]
    assert "73 guaranteed" in lines[0]  # 511 blocks / ceil((128 + 96) / 32)
    assert "58 parallel requests (20% buffer)" in lines[4]  # floor(0.8 x 73)
    assert lines[4].split("    ")[-1].split("   ")[0].endswith("report.html")


def test_the_exit_code_is_the_verdicts(journey: Journey) -> None:
    report = json.loads(journey.folder.report_path("json").read_text(encoding="utf-8"))
    assert journey.exit_code == report["exit_code"]
    # a busy machine may leave too few requests for a proof; it must then say so, and nothing else
    assert report["status"] in ("PASS", "INCONCLUSIVE"), journey.out
    assert report["n_safe"] == 58


def test_every_request_issued_has_one_row_and_the_tokens_it_planned(journey: Journey) -> None:
    rows = load_results(journey.folder)
    assert len({(r.worker, r.seq) for r in rows.requests}) == len(rows.requests) > 200
    assert {r.outcome for r in rows.requests} == {"ok"}
    assert all(r.input_tokens == r.planned_input_tokens == 128 for r in rows.requests)
    assert all(r.output_tokens == r.planned_output_tokens for r in rows.requests)
    assert {r.planned_output_tokens for r in rows.requests} > {40, 60, 80}
    assert rows.damage.bad_lines == rows.damage.torn_tails == 0


def test_the_server_counts_the_requests_that_the_client_counts(journey: Journey) -> None:
    """Not fewer than it had seen a look before, not more than it had sent; test_soak counts exactly."""
    rows = load_results(journey.folder)
    looks = [sample for sample in rows.samples if "requests_finished_total" in sample.signals]
    done_ns = [request.done_ns for request in rows.requests if request.succeeded]
    sent_ns = [request.sent_ns for request in rows.requests if request.sent_ns is not None]
    assert len(looks) > 20
    for before, look in pairwise(looks):
        seen = sum(at_ns <= before.at_ns for at_ns in done_ns)
        sent = sum(at_ns <= look.at_ns for at_ns in sent_ns)
        assert seen <= look.signals["requests_finished_total"] <= sent + 1, "one was asked before the load"


def test_littles_law_holds_while_the_load_is_steady(journey: Journey) -> None:
    """Users set = throughput x mean time: three figures from three places, so none can be far wrong."""
    rows = load_results(journey.folder)
    stage, after = [event for event in rows.events if event.event == "stage"][:2]
    start_ns = stage.at_ns + int(float(stage.data["settle_s"] or 0) * 1e9)
    ended = [r for r in rows.requests if start_ns <= r.done_ns < after.at_ns]
    throughput = len(ended) / ((after.at_ns - start_ns) / 1e9)
    mean_e2e_s = sum(r.e2e_s for r in ended) / len(ended)
    assert throughput * mean_e2e_s == pytest.approx(float(stage.data["users"] or 0), rel=0.05)


def test_no_stage_up_to_the_guarantee_preempted_and_overload_filled_the_cache(journey: Journey) -> None:
    report = json.loads(journey.folder.report_path("json").read_text(encoding="utf-8"))
    stages = report["observation"]["stages"]
    assert [stage["preemptions"] for stage in stages[:2]] == [0, 0]
    assert report["observation"]["wall"]["name"] == "kv"
    saturation = report["prediction"]["n_saturation"]
    assert stages[2]["running_mean"] == pytest.approx(saturation, rel=0.10)


def test_the_report_is_made_again_from_the_rows_alone(journey: Journey) -> None:
    first = journey.folder.report_path("html").read_bytes()
    journey.folder.report_path("html").unlink()
    again = subprocess.run([*ULLAGE, "report", journey.folder.root], capture_output=True, text=True)
    assert (again.returncode, again.stdout) == (journey.exit_code, journey.out)
    assert journey.folder.report_path("html").read_bytes() == first


def test_the_run_left_no_process_and_no_secret_behind(journey: Journey) -> None:
    assert not journey.folder.log_path("collector").read_text()
    assert journey.folder.read_manifest().state == "complete"
    modes = {path.stat().st_mode & 0o077 for path in journey.folder.root.glob("*/*-*.*")}
    assert modes == {0}
