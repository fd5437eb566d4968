"""A load that is ended from outside: by Ctrl-C once or twice, by SIGTERM, by a server that hangs."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from locust_process import answers_of, run_of, start_locust, two_processes, users_at_work, wait_for
from token_server import token_server

from loadtest.reporter.report import judge_run
from loadtest.results import finalise

SCENARIO = """
name: long
input_tokens: {kind: constant, tokens: 8}
output_tokens: {kind: constant, tokens: 8}
settle_s: 0.5
spawn_rate_per_s: 100
stages: [{users: 6, hold_s: 600}]
timeouts: {first_token_s: 2, between_tokens_s: 2}
"""
HEADLESS = ("--headless", "--only-summary", "--scenario", "long.yaml", "--runs-dir", "runs")


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    with token_server() as server:
        yield server.url


@pytest.fixture(params=[1, 2], ids=["one process", "two workers"])
def at_work(request: pytest.FixtureRequest, tmp_path: Path, host: str) -> Iterator[subprocess.Popen[str]]:
    """Locust in the middle of a load: every process of it has written an answer."""
    (tmp_path / "long.yaml").write_text(SCENARIO)
    workers = int(request.param)
    process = start_locust(tmp_path, [*HEADLESS, "--host", host, *(two_processes() if workers == 2 else ())])
    try:
        wait_for(lambda: len(users_at_work(tmp_path)) == workers, process)
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def to_the_group(process: subprocess.Popen[str]) -> None:
    """As a terminal does: every process hears Ctrl-C."""
    os.killpg(process.pid, signal.SIGINT)


def to_the_first(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGINT)


@pytest.mark.parametrize("interrupt", [to_the_group, to_the_first])
def test_ctrl_c_cancels_what_is_in_flight_and_every_row_is_whole(
    at_work: subprocess.Popen[str], interrupt: Callable[[subprocess.Popen[str]], None], tmp_path: Path
) -> None:
    interrupt(at_work)
    output, errors = at_work.communicate(timeout=60)
    folder, rows = run_of(tmp_path)
    assert at_work.returncode == 130, errors
    assert "Traceback" not in errors + output
    assert folder.read_manifest().state == "interrupted"
    assert {request.outcome for request in rows.requests} == {"ok", "client_cancel"}
    assert [event.event for event in rows.events][-1] == "run_end"
    assert rows.damage.bad_lines == rows.damage.torn_tails == 0
    assert not folder.text_segments(), "the run was sealed"


def test_ctrl_c_twice_ends_at_once_and_loses_no_row(at_work: subprocess.Popen[str], tmp_path: Path) -> None:
    answered = answers_of(tmp_path)
    to_the_group(at_work)
    to_the_group(at_work)
    output, errors = at_work.communicate(timeout=60)
    assert "Traceback" not in errors + output
    folder, _ = run_of(tmp_path)
    rows = finalise(folder)
    assert at_work.returncode == 130, errors
    assert len(rows.requests) >= answered
    assert {request.outcome for request in rows.requests} <= {"ok", "client_cancel", "client_lost"}
    assert rows.damage.bad_lines == 0


def test_ctrl_c_stays_an_interruption_when_the_load_processes_die_of_it(tmp_path: Path, host: str) -> None:
    """A second Ctrl-C may reach them and not the master, which then waits for rows that never come."""
    (tmp_path / "long.yaml").write_text(SCENARIO)
    process = start_locust(tmp_path, [*HEADLESS, "--host", host, *two_processes()])
    try:
        wait_for(lambda: len(users_at_work(tmp_path)) == 2, process)
        workers = workers_of(process)
        for worker in workers:  # each keeps its rows, and would close them if it could
            os.kill(worker, signal.SIGSTOP)
        to_the_first(process)
        wait_for(lambda: any(event.event == "run_end" for event in run_of(tmp_path)[1].events), process)
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert process.returncode == 130, errors
    assert "ullage: no load process" not in errors
    folder, _ = run_of(tmp_path)
    assert folder.read_manifest().state == "interrupted"


def test_sigterm_ends_the_load_in_good_order(at_work: subprocess.Popen[str], tmp_path: Path) -> None:
    at_work.terminate()
    output, errors = at_work.communicate(timeout=60)
    folder, rows = run_of(tmp_path)
    assert at_work.returncode == 130, errors
    assert "Traceback" not in errors + output
    assert folder.read_manifest().state == "interrupted"
    assert {request.outcome for request in rows.requests} == {"ok", "client_cancel"}


def test_a_worker_that_is_killed_leaves_its_requests_as_client_lost(tmp_path: Path, host: str) -> None:
    (tmp_path / "long.yaml").write_text(SCENARIO)
    process = start_locust(tmp_path, [*HEADLESS, "--host", host, *two_processes()])
    try:
        wait_for(lambda: len(users_at_work(tmp_path)) == 2, process)
        victim = workers_of(process)[0]
        records = run_of(tmp_path)[0].root / "records"
        wait_for(lambda: is_held_with_all_in_flight(victim, records), process)
        os.kill(victim, signal.SIGKILL)
        wait_for(lambda: file_open_in(victim, records) is None, process)
        to_the_first(process)
        process.communicate(timeout=90)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    _, rows = run_of(tmp_path)
    lost = [request for request in rows.requests if request.outcome == "client_lost"]
    assert len(lost) == 3, "its share of six users, each with a request in flight"
    assert len({request.worker for request in lost}) == 1
    assert {request.model for request in lost} == {"m"}


@pytest.mark.parametrize(
    ("send", "why"),
    [
        (signal.SIGSTOP, "this machine was too busy to run the load generator"),
        (signal.SIGKILL, "all have died"),
    ],
    ids=["starved", "killed"],
)
def test_a_run_whose_load_processes_all_fall_silent_says_so(
    send: signal.Signals, why: str, tmp_path: Path, host: str
) -> None:
    (tmp_path / "long.yaml").write_text(SCENARIO)
    process = start_locust(tmp_path, [*HEADLESS, "--host", host, *two_processes()])
    try:
        wait_for(lambda: len(users_at_work(tmp_path)) == 2, process)
        workers = workers_of(process)
        for worker in workers:
            os.kill(worker, send)
        wait_for(lambda: any(event.event == "fault" for event in run_of(tmp_path)[1].events), process)
        if send is signal.SIGSTOP:
            for worker in workers:
                os.kill(worker, signal.SIGCONT)
        _, errors = process.communicate(timeout=90)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert process.returncode == 5, errors
    assert "no load process of 2 has answered for 3 s" in errors
    assert why in errors
    folder, _ = run_of(tmp_path)
    verdict = judge_run(folder)
    assert (verdict.status, verdict.exit_code) == ("VOID", 5)
    assert why in verdict.reason


def is_held_with_all_in_flight(worker: int, records: Path) -> bool:
    """Holds it still, and lets it go on where one of its users is between two requests."""
    os.kill(worker, signal.SIGSTOP)
    rows = file_open_in(worker, records)
    assert rows is not None
    said = rows.read_bytes()
    if said.count(b'"kind":"issued"') - said.count(b'"kind":"request"') == 3:
        return True
    os.kill(worker, signal.SIGCONT)
    return False


def file_open_in(process: int, folder: Path) -> Path | None:
    """Killed is not yet gone: does it still hold its file of this folder?"""
    try:
        held = [file.readlink() for file in Path(f"/proc/{process}/fd").iterdir()]
    except OSError:
        return None
    return next((file for file in held if file.parent == folder), None)


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """The load processes that Locust has forked; the collector is a child too, but another program."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [
        int(child)
        for child in children
        if b"loadtest.collector" not in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_server_that_hangs_ends_the_load_with_the_code_of_a_dead_target(
    tmp_path: Path, workers: int
) -> None:
    (tmp_path / "long.yaml").write_text(SCENARIO)
    with token_server(is_silent=True) as server:
        options = two_processes() if workers == 2 else ()
        process = start_locust(tmp_path, [*HEADLESS, "--host", server.url, *options])
        _, errors = process.communicate(timeout=60)
    told = [line for line in errors.splitlines() if line.startswith("ullage: ")]
    assert process.returncode == 3, errors
    assert any("generated nothing" in line for line in told), errors
