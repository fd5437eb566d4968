"""F55: a disk that stalls. Syncing is waited for beside the load; a write that waits is its own fault."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Final

import pytest
from load_processes import LOCUST, Load, held, load, twin

EXIT_VOID: Final = 5
SOURCE: Final = Path(__file__).parents[1] / "support/slow_disk.c"
HOLD_S, STALL_S = 8.0, 3.0


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    with twin() as url:
        yield url


@pytest.fixture(scope="module")
def slow_disk(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A command that runs another on a disk that stalls."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler: no disk can be made slow here")
    library = tmp_path_factory.mktemp("slow") / "slow_disk.so"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", SOURCE, "-o", library, "-ldl"], check=True)
    return ["env", f"LD_PRELOAD={library}"]


def longest_silence_s(run: Load) -> float:
    """Between two requests that were sent one after the other."""
    sent_ns = sorted(row.sent_ns for row in run.rows().requests if row.sent_ns is not None)
    return max(after - before for before, after in pairwise(sent_ns)) / 1e9


def client_faults(run: Load) -> list[str]:
    run.report()
    report = json.loads(run.folder.report_path("json").read_text(encoding="utf-8"))
    faults: list[str] = report["observation"]["client"]["faults"]
    return faults


def test_f55_a_disk_that_takes_seconds_to_sync_delays_no_request(
    slow_disk: list[str], tmp_path: Path, host: str
) -> None:
    command = [*slow_disk, f"SLOW_SYNC_MS={STALL_S * 1000:.0f}", *LOCUST]
    with load(tmp_path, command, "--host", host, scenario=held(HOLD_S)) as run:
        assert run.ended() == 0, run.errors
        assert {row.outcome for row in run.rows().requests} == {"ok"}
        assert longest_silence_s(run) < STALL_S / 2
        assert not any("stood still" in fault for fault in client_faults(run))


def test_f55_a_write_that_waits_for_the_disk_voids_the_run_as_the_clients_fault(
    slow_disk: list[str], tmp_path: Path, host: str
) -> None:
    command = [*slow_disk, "SLOW_WRITE_AT=150", f"SLOW_WRITE_MS={STALL_S * 1000:.0f}", *LOCUST]
    with load(tmp_path, command, "--host", host, scenario=held(HOLD_S)) as run:
        assert run.ended() == 0, run.errors
        assert {row.outcome for row in run.rows().requests} == {"ok"}, "no row is lost"
        assert longest_silence_s(run) > STALL_S * 0.9
        assert run.report().returncode == EXIT_VOID
        assert any("it stood still for" in fault for fault in client_faults(run))
