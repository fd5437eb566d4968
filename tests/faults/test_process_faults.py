"""Harm done to the load's own processes, by the number of the fault: what ends, how fast, what is kept."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
import pytest
from load_processes import (
    LOCUST,
    SCENARIO,
    SIGNOFF,
    Load,
    crew,
    held,
    load,
    twin,
    ullage,
    until,
)

from estimator.errors import EXIT_INTERRUPTED, EXIT_USAGE

STOPPED_S: Final = 2.5
"""How long a load process is held still; the report takes two seconds for a standstill."""
EXIT_KILLED: Final = -signal.SIGKILL
EXIT_VOID: Final = 5


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    with twin() as url:
        yield url


# ------------------------------------------------------------------ what ends a load, and how


def told(number: signal.Signals) -> Callable[[Load], None]:
    return lambda run: run.process.send_signal(number)


def kill_the_leader(run: Load) -> None:
    run.process.kill()


def remove_the_results(run: Load) -> None:
    shutil.rmtree(run.root)


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """A fault that ends the load; `within_s` of it no process of the run is left."""

    fault: str
    does: str
    command: list[str]
    has_crew: bool = False
    harm: Callable[[Load], None]
    exit_code: int
    says: str = ""
    within_s: float = 5.0
    outcomes: frozenset[str] = frozenset({"ok", "client_cancel"})
    leaves_rows: bool = True
    leaves_report: bool = False


LOST: Final = frozenset({"ok", "client_cancel", "client_lost"})
HEARD: Final = "waiting for Locust to write what it has"
ENDS: Final = (
    End(
        fault="F50",
        does="master SIGKILL",
        command=LOCUST,
        has_crew=True,
        harm=kill_the_leader,
        exit_code=EXIT_KILLED,
        outcomes=LOST,
    ),
    End(
        fault="F50",
        does="signoff SIGKILL",
        command=SIGNOFF,
        harm=kill_the_leader,
        exit_code=EXIT_KILLED,
        outcomes=LOST,
    ),
    *(
        End(
            fault="F51",
            does=f"signoff {number.name}",
            command=SIGNOFF,
            harm=told(number),
            exit_code=EXIT_INTERRUPTED,
            says=HEARD,
            within_s=15.0,  # a report is made
            leaves_report=True,
        )
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    ),
    End(
        fault="F54",
        does="results removed",
        command=LOCUST,
        harm=remove_the_results,
        exit_code=EXIT_USAGE,
        says="was removed while it was being written: rerun",
        leaves_rows=False,
    ),
)


@pytest.mark.parametrize("case", ENDS, ids=lambda case: f"{case.fault} {case.does}")
def test_a_load_that_is_harmed_ends_whole_and_leaves_nobody_behind(
    case: End, tmp_path: Path, host: str
) -> None:
    with load(tmp_path, case.command, "--host", host, *(crew() if case.has_crew else ())) as run:
        run.under_way()
        case.harm(run)
        assert run.ended() == case.exit_code, run.errors
        until(lambda: not run.orphans(), case.within_s)
        assert case.says in run.errors
        assert "Traceback" not in run.errors
        if case.leaves_rows:
            recovered = ullage("recover", run.root)
            assert recovered.returncode == 0, recovered.stdout + recovered.stderr
            rows = run.rows()
            outcomes = Counter(request.outcome for request in rows.requests)
            assert set(outcomes) <= case.outcomes
            assert outcomes["ok"] >= 12
            assert run.folder.read_manifest().state == "interrupted"
            if not case.leaves_report:
                assert run.report().returncode != 0
            assert json.loads(run.folder.report_path("json").read_text())["exit_code"] != 0


def test_f51_a_second_signal_ends_it_at_once_and_the_rows_are_whole(tmp_path: Path, host: str) -> None:
    endless = SCENARIO.replace("tokens: 48", "tokens: 1500")
    with load(tmp_path, SIGNOFF, "--host", host, scenario=endless) as run:
        until(lambda: run.process.poll() is not None or run.in_flight() == 6)
        run.remember()
        run.process.send_signal(signal.SIGINT)
        time.sleep(0.6)  # what a person takes to press the keys again
        run.process.send_signal(signal.SIGINT)
        assert run.ended(within_s=10.0) == EXIT_INTERRUPTED, run.errors
        until(lambda: not run.orphans(), 5.0)
        assert "Traceback" not in run.errors
        assert ullage("recover", run.root).returncode == 0
        assert run.folder.read_manifest().state == "interrupted"
        assert {request.outcome for request in run.rows().requests} <= LOST


def test_the_load_shares_the_session_of_its_command_and_not_its_ctrl_c(tmp_path: Path, host: str) -> None:
    """Linux shares a busy processor between sessions first: in one of its own a load waits for seconds."""
    with load(tmp_path, SIGNOFF, "--host", host) as run:
        run.under_way()
        (locust,) = psutil.Process(run.process.pid).children()
        assert os.getsid(locust.pid) == os.getsid(run.process.pid)
        assert os.getpgid(locust.pid) != os.getpgid(run.process.pid)


# ------------------------------------------------------------------ what a load survives


def kill_a_worker(run: Load) -> None:
    run.workers()[0].kill()


def stand_still(run: Load) -> None:
    run.process.send_signal(signal.SIGSTOP)
    time.sleep(STOPPED_S)  # the fault itself
    run.process.send_signal(signal.SIGCONT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spoiled:
    """A fault of the client in the middle of a stage: the run goes on, and is void for that reason."""

    fault: str
    does: str
    has_crew: bool
    harm: Callable[[Load], None]
    reason: str


SPOILED: Final = (
    Spoiled(
        fault="F48",
        does="worker SIGKILL",
        has_crew=True,
        harm=kill_a_worker,
        reason="a load process died with",
    ),
    Spoiled(
        fault="F49", does="SIGSTOP, SIGCONT", has_crew=False, harm=stand_still, reason="it stood still for"
    ),
)


@pytest.mark.parametrize("case", SPOILED, ids=lambda case: f"{case.fault} {case.does}")
def test_a_client_that_failed_voids_the_run_and_not_the_server(
    case: Spoiled, tmp_path: Path, host: str
) -> None:
    options = crew() if case.has_crew else ()
    with load(tmp_path, LOCUST, "--host", host, *options, scenario=held(8)) as run:
        run.under_way(requests=24)
        harmed_ns = time.perf_counter_ns()
        case.harm(run)
        assert run.ended() == 0, run.errors
        rows = list(run.rows().requests)
        assert {row.outcome for row in rows} <= {"ok", "client_lost"}
        assert any(row.intended_ns > harmed_ns + STOPPED_S * 1e9 for row in rows), "the others went on"
        assert run.folder.read_manifest().state == "complete"
        report = run.report()
        assert report.returncode == EXIT_VOID, report.stdout
        assert case.reason in report.stdout.splitlines()[-1]
