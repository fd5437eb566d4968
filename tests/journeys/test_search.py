"""A search with real parts: a twin of eight slots, real Locust, in one process and in two workers.

Beyond the slots requests queue, so TTFT says where the limit is: at 300 ms some 14 users.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from loadtest.conductor.processes import end_process
from loadtest.records import RequestRecord
from loadtest.results import RunRows, load_results
from loadtest.run_folder import RunFolder
from loadtest.search_result import Probe, SearchResult

pytestmark = pytest.mark.timeout(240)
SLOTS = 8
SCENARIO = """
name: search
seed: 3
input_tokens: 64
output_tokens: {kind: uniform, min: 40, max: 60}
search: {max_minutes: 2, settle_min_s: 1, users_max: 40}
spawn_rate_per_s: 50
limits: {ttft_s: 0.3, percentile: 60}   # loose: few requests tell a level
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Journey:
    """What one sign-off left behind."""

    processes: int
    exit_code: int
    out: str
    err: str
    folder: RunFolder
    found: SearchResult
    rows: RunRows

    def sent_while_judged(self, probe: Probe) -> list[RequestRecord]:
        """In the order of sending: those that count for the level."""
        assert probe.settled_s is not None
        requests = [r for r in self.rows.requests if probe.settled_s <= r.intended_ns / 1e9 <= probe.ended_s]
        return sorted(requests, key=lambda request: request.intended_ns)


@contextlib.contextmanager
def twin_of_eight_slots() -> Iterator[str]:
    command = [sys.executable, "-m", "estimator.twin.server", "--profile", "tiny", "--port", "0"]
    with subprocess.Popen(
        [*command, "--max-num-seqs", str(SLOTS), "--exit-with-stdin"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as twin:
        try:
            assert twin.stdout is not None
            yield twin.stdout.readline().split()[3]
        finally:
            end_process(twin)


def sign_off(processes: int, home: Path) -> Journey:
    (home / "scenario.yaml").write_text(SCENARIO)
    with twin_of_eight_slots() as host:
        command = [sys.executable, "-m", "loadtest.cli", "signoff", "--no-audit", "--host", host]
        command += ["--scenario", str(home / "scenario.yaml"), "--runs-dir", str(home / "runs")]
        done = subprocess.run(
            [*command, "--max-num-seqs", str(SLOTS), "--processes", str(processes)],
            capture_output=True,
            text=True,
            timeout=200,
        )
    assert (home / "runs").is_dir(), done.stderr
    (root,) = (home / "runs").iterdir()
    folder = RunFolder.open(root)
    found = folder.read_search()
    assert found is not None, done.stderr
    return Journey(
        processes=processes,
        exit_code=done.returncode,
        out=done.stdout,
        err=done.stderr,
        folder=folder,
        found=found,
        rows=load_results(folder),
    )


@pytest.fixture(scope="module")
def journeys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, Future[Journey]]]:
    """Both side by side, each with a twin of its own: eight slots keep no core busy."""
    homes = {processes: tmp_path_factory.mktemp("search") for processes in (1, 2)}  # not for threads
    with ThreadPoolExecutor(len(homes)) as pool:
        yield {processes: pool.submit(sign_off, processes, home) for processes, home in homes.items()}


@pytest.fixture(scope="module", params=[1, 2], ids=["one-process", "two-workers"])
def journey(request: pytest.FixtureRequest, journeys: dict[int, Future[Journey]]) -> Journey:
    return journeys[request.param].result()


def test_the_search_begins_at_the_prediction_and_ends_with_a_certified_level(journey: Journey) -> None:
    found = journey.found
    assert (found.probes[0].users, found.probes[0].choice.role) == (SLOTS, "search")
    certified = [probe for probe in found.probes if probe.choice.role == "certify"]
    assert [probe.users for probe in certified] == [found.n_safe]
    assert found.certificate == certified[0].finding
    if found.n_max >= SLOTS:  # a machine busy beyond measure may hold fewer
        assert found.n_safe == 6  # floor(0.8 x 8)
    assert found.breaks is not None
    assert found.n_max < found.breaks <= found.n_max + 1 or found.breaks <= 1.05 * found.n_max


def test_each_level_is_an_event_and_the_moment_it_settled_is_one(journey: Journey) -> None:
    stages = [event for event in journey.rows.events if event.event == "stage"]
    settled = {
        event.data["index"]: event.at_ns / 1e9 for event in journey.rows.events if event.event == "settled"
    }
    assert [event.data["users"] for event in stages] == [probe.users for probe in journey.found.probes]
    assert [settled.get(i) for i in range(len(stages))] == [p.settled_s for p in journey.found.probes]
    for probe, following in pairwise(journey.found.probes):
        assert probe.ended_s == following.began_s


def test_the_certificate_is_found_again_in_the_rows(journey: Journey) -> None:
    (certified,) = [probe for probe in journey.found.probes if probe.choice.role == "certify"]
    assert certified.finding.verdict == "PASS", certified.finding.because
    counted = journey.sent_while_judged(certified)[: certified.finding.n]
    assert len(counted) == certified.finding.n
    late = sum(not r.succeeded or (r.ttft_s or 0.0) > 0.3 for r in counted)
    # two workers tell of their requests half a second apart, so the order is only nearly that of sending
    assert late == pytest.approx(certified.finding.k, abs=0 if journey.processes == 1 else 3)


def test_users_leave_a_level_with_their_answer(journey: Journey) -> None:
    """Some levels are lower than the one before: nobody there is cut off."""
    assert any(after.users < before.users for before, after in pairwise(journey.found.probes))
    (end,) = [event for event in journey.rows.events if event.event == "run_end"]
    assert {r.outcome for r in journey.rows.requests if r.done_ns < end.at_ns} == {"ok"}


def test_all_load_processes_are_heard(journey: Journey) -> None:
    assert {r.worker for r in journey.rows.requests} == set(range(journey.processes))


def test_the_report_signs_what_the_search_found(journey: Journey) -> None:
    report = json.loads(journey.folder.report_path("json").read_text(encoding="utf-8"))
    found, lines = journey.found, journey.out.splitlines()
    assert journey.exit_code == report["exit_code"]
    # a busy machine may be too slow a client; the run is void then, whatever was found
    assert report["status"] in (found.verdict, "VOID", "INCONCLUSIVE"), journey.out
    assert (report["n_max"], report["n_safe"]) == (found.n_max, found.n_safe)
    assert f"{found.n_max} held · {found.breaks} does not   ({len(found.probes)} probes in" in lines[1]
    assert "probe 1: 8 users, the prediction says the limit is here" in journey.err


def test_the_report_is_made_again_from_the_folder_alone(journey: Journey) -> None:
    command = [sys.executable, "-m", "loadtest.cli", "report", str(journey.folder.root)]
    again = subprocess.run(command, capture_output=True, text=True)
    assert (again.returncode, again.stdout) == (journey.exit_code, journey.out)


def test_a_run_folder_is_found_where_it_was_left(journey: Journey) -> None:
    assert journey.folder.read_manifest().state == "complete"
    assert Path(journey.folder.root, "search.json").is_file()
