"""F55: a disk that stalls. Syncing is waited for beside the load; a write that waits is its own fault."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Final

import pytest
from c_compiler import c_compiler
from load_processes import LOCUST, Load, held, load, twin

from loadtest.reporter.client_health import client_health
from loadtest.reporter.question import answer
from loadtest.reporter.stages import windows

SOURCE: Final = Path(__file__).parents[1] / "support/slow_disk.c"
HOLD_S, STALL_S = 8.0, 3.0


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    with twin() as url:
        yield url


@pytest.fixture(scope="module")
def slow_disk(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A command that runs another on a disk that stalls."""
    library = tmp_path_factory.mktemp("slow") / "slow_disk.so"
    subprocess.run([c_compiler(), "-O1", "-shared", "-fPIC", SOURCE, "-o", library, "-ldl"], check=True)
    return ["env", f"LD_PRELOAD={library}"]


def longest_silence_s(run: Load) -> float:
    """Between two requests that were sent one after the other."""
    sent_ns = sorted(row.sent_ns for row in run.rows().requests if row.sent_ns is not None)
    return max(after - before for before, after in pairwise(sent_ns)) / 1e9


def halts(run: Load) -> tuple[str, ...]:
    """What the report says against the client that voids a run."""
    rows = run.rows()
    health = answer(rows.requests, client_health(rows.samples, windows(rows.events)))
    return health.halts


def test_f55_a_disk_that_takes_seconds_to_sync_delays_no_request(
    slow_disk: list[str], tmp_path: Path, host: str
) -> None:
    command = [*slow_disk, f"SLOW_SYNC_MS={STALL_S * 1000:.0f}", *LOCUST]
    with load(tmp_path, command, "--host", host, scenario=held(HOLD_S)) as run:
        assert run.ended() == 0, run.errors
        assert {row.outcome for row in run.rows().requests} == {"ok"}
        assert longest_silence_s(run) < STALL_S / 2
        assert not halts(run)


def test_f55_a_write_that_waits_for_the_disk_voids_the_run_as_the_clients_fault(
    slow_disk: list[str], tmp_path: Path, host: str
) -> None:
    command = [*slow_disk, "SLOW_WRITE_AT=60", f"SLOW_WRITE_MS={STALL_S * 1000:.0f}", *LOCUST]
    with load(tmp_path, command, "--host", host, scenario=held(HOLD_S)) as run:
        assert run.ended() == 0, run.errors
        assert {row.outcome for row in run.rows().requests} == {"ok"}, "no row is lost"
        assert longest_silence_s(run) > STALL_S * 0.9
        assert any("it stood still for" in halt for halt in halts(run))
