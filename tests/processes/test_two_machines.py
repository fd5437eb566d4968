"""Workers on other machines: namespaces with networks, mounts and clocks of their own, on this one."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from statistics import median

import machines
import psutil
import pytest
from load_processes import ENVIRON
from locust_process import run_of, start_locust, wait_for
from machines import Machine

from loadtest.clocks import CLOCK_ERROR_NS_MAX, measured
from loadtest.records import RequestRecord
from loadtest.reporter.saturation import observe
from loadtest.reporter.verdict import Verdict, judge
from loadtest.results import RunRows

AHEAD_S = 1_000
NEAR, FAR = 2, 3
"""Machines of the workers: the clock of the first is the master's, that of the second AHEAD_S ahead."""
SCENARIO = """
name: far
input_tokens: {kind: constant, tokens: 16}
output_tokens: {kind: constant, tokens: 16}
settle_s: 0.5
spawn_rate_per_s: 100
arrivals: {kind: poisson}
stages: [{users: 12, rate_per_s: 20, hold_s: 1.5}, {users: 12, rate_per_s: 30, hold_s: 2}]
limits: {ttft_s: 2.0}
"""


@cache
def reason_not() -> str | None:
    return machines.why_not()


@dataclass(slots=True, kw_only=True)
class Load:
    """A master, and two workers with networks of their own: one shares its clock, `far` has another."""

    home: Path
    master: subprocess.Popen[str]
    far: subprocess.Popen[str]

    def kept(self, number: int) -> Path:
        """Where the worker of such a machine keeps the rows of runs."""
        return self.home / f"state{number}" / "ullage" / "far"

    def far_answers(self) -> int:
        texts = self.kept(FAR).rglob("records/*.jsonl")
        return sum(text.read_bytes().count(b'"kind":"request"') for text in texts)

    def ended(self) -> tuple[int, str]:
        _, errors = self.master.communicate(timeout=60)
        return self.master.returncode, errors

    def verdict(self) -> Verdict:
        """What the report would say."""
        folder, rows = run_of(self.home)
        prediction = folder.read_prediction()
        return judge(prediction, observe(rows, folder.read_manifest(), None))


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Load]:
    if (why := reason_not()) is not None:
        pytest.skip(why)
    (tmp_path / "far.yaml").write_text(SCENARIO)
    (tmp_path / "runs").mkdir()
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(machines.base())
        workers = {
            NEAR: stack.enter_context(machines.other(first, NEAR)),
            FAR: stack.enter_context(machines.other(first, FAR, ahead_s=AHEAD_S)),
        }
        for machine in workers.values():
            machine.run("mount", "-t", "tmpfs", "none", str(tmp_path / "runs"))  # it sees an empty folder
        host = stack.enter_context(twin(first))
        bind = ("--master-bind-host", first.address, "--expect-workers", "2")
        ours = ("--headless", "--only-summary", "--scenario", "far.yaml", "--runs-dir", "runs")
        master = start(stack, tmp_path, first, "--master", *bind, "--host", host, *ours)
        join = ("--worker", "--master-host", first.address)
        _, far = (start(stack, tmp_path, machine, *join) for machine in workers.values())
        yield Load(home=tmp_path, master=master, far=far)


def start(stack: contextlib.ExitStack, home: Path, where: Machine, *options: str) -> subprocess.Popen[str]:
    state = {"XDG_STATE_HOME": str(home / f"state{where.address[-1]}")}
    process = start_locust(home, options, environ=state, prefix=where.prefix)
    stack.callback(end, process)
    return process


def end(process: subprocess.Popen[str]) -> None:
    for one in (*family(process), process):
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            one.kill()
    process.communicate(timeout=60)


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


@contextlib.contextmanager
def twin(where: Machine) -> Iterator[str]:
    command = [*where.prefix, sys.executable, "-m", "estimator.twin.server", "--profile", "tiny"]
    process = subprocess.Popen(
        [*command, "--port", "0", "--host", where.address, "--exit-with-stdin"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRON,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process.stdout.readline().split()[3]
    finally:
        process.stdin.close()
        process.wait(timeout=60)
        process.stdout.close()


def of(rows: RunRows, worker: int) -> list[RequestRecord]:
    return [request for request in rows.requests if request.worker == worker]


def test_rows_of_another_machine_are_gathered_and_dated_by_the_masters_clock(load: Load) -> None:
    code, errors = load.ended()
    _, rows = run_of(load.home)
    assert code == 0, errors
    (comparisons,) = measured(rows.events).values()
    far = comparisons[0].worker
    near = 1 - far
    assert {request.worker for request in rows.requests} == {0, 1}
    assert Counter(request.outcome for request in rows.requests) == {"ok": len(rows.requests)}
    assert {sample.target for sample in rows.samples if sample.source == "client"} == {"w00", "w01"}

    assert [one.phase for one in comparisons] == ["before", "after"]
    for one in comparisons:
        error_ns = abs(one.offset.offset_ns - AHEAD_S * 10**9)
        assert error_ns <= one.offset.uncertainty_ns < CLOCK_ERROR_NS_MAX, "the namespace's clock is exact"

    edges_ns = [event.at_ns for event in rows.events if event.event in ("stage", "run_end")]
    for worker in (near, far):
        for begun_ns, ended_ns in pairwise(edges_ns):
            sent = [one for one in of(rows, worker) if begun_ns <= one.intended_ns < ended_ns]
            assert len(sent) >= 5, "both keep to the arrivals of every stage"
        assert median(one.send_lateness_s or 0.0 for one in of(rows, worker)) < 0.05
    # what comes due while the end is on its way to a worker is still sent
    assert all(
        0 <= one.intended_ns - edges_ns[0] <= edges_ns[-1] - edges_ns[0] + 10**9 for one in rows.requests
    )
    for figure in (lambda one: one.ttft_s, lambda one: one.tpot_s, lambda one: one.e2e_s):
        mine, theirs = (median(figure(one) for one in of(rows, worker)) for worker in (near, far))
        assert theirs == pytest.approx(mine, rel=0.5), "both asked the same server"

    assert {event.data["worker"] for event in rows.events if event.event == "gathered"} == {0, 1}
    for number in (NEAR, FAR):
        assert not list(load.kept(number).iterdir()), "the worker's own copy has gone"
    observed = load.verdict().observation
    assert observed.requests == len(rows.requests)
    assert observed.wall.name != "invalid"
    assert any(f"w{far:02d} ran on" in note for note in observed.notes)


def test_a_worker_that_is_killed_there_voids_the_run_and_its_rows_are_named(load: Load) -> None:
    wait_for(lambda: load.far_answers() >= 4, load.master)
    for one in (*family(load.far), psutil.Process(load.far.pid)):
        os.kill(one.pid, signal.SIGKILL)
    code, errors = load.ended()
    (kept,) = load.kept(FAR).glob("*/w*")
    folder, rows = run_of(load.home)
    told = [line for line in errors.splitlines() if line.startswith("ullage: ")]
    assert any(str(kept) in line for line in told), errors
    assert code == 5
    assert len({request.worker for request in rows.requests}) == 1
    verdict = load.verdict()
    assert (verdict.status, verdict.exit_code) == ("VOID", 5)
    assert str(kept) in verdict.reason

    for part in ("records", "streams", "samples"):  # nothing is lost: a person may fetch it
        shutil.copytree(kept / part, folder.root / part, dirs_exist_ok=True)
    _, rows = run_of(load.home)
    assert {request.worker for request in rows.requests} == {0, 1}
    assert load.verdict().status == "VOID"
