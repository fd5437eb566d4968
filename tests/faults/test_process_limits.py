"""What a load meets at the limits of its machine: descriptors, ports, disk, memory, and other runs."""

from __future__ import annotations

import errno
import json
import resource
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final
from urllib.request import Request, urlopen

import load_processes
import pytest
from load_processes import (
    ENVIRON,
    LOCUST,
    TWIN,
    Limits,
    held,
    load,
    twin,
    ullage,
    until,
)

from estimator.errors import EXIT_USAGE
from loadtest.collector.engine_metrics import EngineReading
from loadtest.conductor.audit.idle import idle_check
from loadtest.conductor.server_facts import read_server
from loadtest.origin import parse_origin

EXIT_VOID: Final = 5
LOST: Final = frozenset({"ok", "client_cancel", "client_lost"})


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    with twin() as url:
        yield url


# ------------------------------------------------------------------ what it refuses to start with


def test_f43_users_that_the_file_descriptor_limit_cannot_carry_are_refused(tmp_path: Path, host: str) -> None:
    limits: Limits = {resource.RLIMIT_NOFILE: (256, 256)}
    with load(tmp_path, LOCUST, "--host", host, "-u", "200", "-t", "1s", limits=limits) as run:
        assert run.ended() == EXIT_USAGE
        assert "200 users need 300 file descriptors and this process may open 256" in run.errors
        assert not (tmp_path / "runs").exists()


def test_f43_a_soft_file_descriptor_limit_is_raised_and_f58_no_gpu_is_a_note_not_a_fault(
    tmp_path: Path, host: str
) -> None:
    limits: Limits = {resource.RLIMIT_NOFILE: (64, 4096)}
    options = "-u", "20", "-r", "200", "-t", "2s"
    with load(tmp_path, LOCUST, "--host", host, *options, limits=limits) as run:
        assert run.ended() == 0, run.errors
        rows = run.rows()
        assert {request.outcome for request in rows.requests} == {"ok"}
        assert len({sample.gap for sample in rows.samples if sample.source == "gpu"} - {None}) <= 1
        run.report()
        report = json.loads(run.folder.report_path("json").read_text())
        assert report["status"] != "FAIL"
        assert "GPU" not in report["reason"]


def test_f57_a_second_run_in_one_folder_is_refused_and_harms_nothing(tmp_path: Path, host: str) -> None:
    (tmp_path / "second").mkdir()
    with load(tmp_path, LOCUST, "--host", host, scenario=held(2.5)) as run:
        run.under_way(requests=1)
        with load(tmp_path / "second", LOCUST, "--host", host, "--run-folder", str(run.root)) as second:
            assert second.ended() == EXIT_USAGE
            assert "events.jsonl: File exists" in second.errors
        assert run.ended() == 0, run.errors
        assert {request.outcome for request in run.rows().requests} == {"ok"}


def test_f57_a_port_that_is_taken_is_said_in_one_sentence(host: str) -> None:
    port = host.rsplit(":", 1)[1]
    taken = subprocess.run(
        [*TWIN[:-1], port], capture_output=True, text=True, timeout=60, env=ENVIRON, stdin=subprocess.DEVNULL
    )
    assert taken.returncode == EXIT_USAGE
    assert port in taken.stderr
    assert "Traceback" not in taken.stderr


# ------------------------------------------------------------------ a small disk, few ports: in namespaces


def in_namespace(flags: str, script: str, *words: str) -> list[str]:
    """A command in namespaces of its own; skips where this kernel gives us none."""
    if subprocess.run(["unshare", flags, "true"], capture_output=True).returncode != 0:
        pytest.skip("this kernel gives us no namespaces of our own")
    return ["unshare", flags, "sh", "-euc", script, "sh", *words]


SMALL_DISK: Final = """
mkdir runs && mount -t tmpfs -o size=96k tmpfs runs
set +e; "$@"; code=$?; set -e
cp -r runs kept; umount runs; rmdir runs; mv kept runs
exit $code
"""


def test_f53_a_disk_that_is_full_stops_the_load_and_every_whole_row_is_read(
    tmp_path: Path, host: str
) -> None:
    command = in_namespace("-rm", SMALL_DISK, *LOCUST)
    with load(tmp_path, command, "--host", host, "-u", "6", "-r", "200", "-t", "40s") as run:
        assert run.ended() == EXIT_USAGE, run.errors
        assert "cannot write" in run.errors
        assert "No space left on device; free space and rerun" in run.errors
        assert "Traceback" not in run.errors
        recovered = ullage("recover", run.root)  # there is space again
        assert recovered.returncode == 0, recovered.stdout + recovered.stderr
        outcomes = Counter(request.outcome for request in run.rows().requests)
        assert set(outcomes) <= LOST
        assert outcomes["ok"] > 6
        ended_ns = [request.done_ns for request in run.rows().requests if request.outcome == "ok"]
        issued_ns = [request.intended_ns for request in run.rows().requests]
        assert max(issued_ns) - max(ended_ns) < 2e9, "no request is sent whose end cannot be written"


FEW_PORTS: Final = """
ip link set lo up
echo 40000 40019 > /proc/sys/net/ipv4/ip_local_port_range
"$@"
"""


def test_f44_users_that_find_no_port_are_the_clients_fault_by_name(tmp_path: Path) -> None:
    command = in_namespace("-rn", FEW_PORTS, sys.executable, load_processes.__file__, *LOCUST)
    with load(tmp_path, command, scenario=held(4).replace("users: 6", "users: 40")) as run:
        assert run.ended() == 1, run.errors  # Locust's own code where requests failed
        outcomes = Counter(request.outcome for request in run.rows().requests)
        assert set(outcomes) <= {"ok", "client_ports", "client_cancel"}
        assert outcomes["client_ports"] > 0
        assert outcomes["ok"] > 0
        failed = [request for request in run.rows().requests if request.outcome == "client_ports"]
        assert {request.error_number for request in failed} == {errno.EADDRNOTAVAIL}
        report = run.report()
        assert report.returncode == EXIT_VOID, report.stdout
        assert "found no file descriptor or port on this machine" in report.stdout.splitlines()[-1]


# ------------------------------------------------------------------ a long run, and the one before


MANY_ROWS: Final = """
import os, sys
from pathlib import Path
from killed_writers import row_of
from loadtest.conductor.pulse import rss_bytes
from loadtest.segments import SegmentWriter

writer = SegmentWriter(Path(sys.argv[1]), "w00", segment_bytes=10**6, seal=lambda path: os.getpid())
for position in range(80_000):
    writer.append(row_of(position))
    if position == 5_000:
        before = rss_bytes()
print(rss_bytes() - before)
"""


def test_f56_rows_take_no_memory_however_many_there_are(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MANY_ROWS, tmp_path], capture_output=True, text=True, timeout=60, env=ENVIRON
    )
    assert int(done.stdout) < 2 * 2**20, done.stderr
    assert len(list(tmp_path.iterdir())) > 20


def test_f52_a_load_waits_for_what_still_runs_in_the_server_and_no_longer_than_that(host: str) -> None:
    """As requests do whose client went away: here, a client of somebody else."""
    origin = parse_origin(host)
    body = {"model": "tiny", "prompt": [5] * 16, "max_tokens": 400, "ignore_eos": True}
    request = Request(
        f"{host}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )

    def look() -> EngineReading | None:
        return read_server(origin, None).reading

    with ThreadPoolExecutor(1) as beside:
        answer = beside.submit(lambda: urlopen(request, timeout=60).read())
        until(lambda: idle_check(look, within_s=0).level == "red")
        busy = idle_check(look, within_s=0)
        assert busy.said == "1 requests run and 0 wait in it after 0 s"
        assert idle_check(look).level == "ok"
        assert answer.result()
    assert idle_check(lambda: None).level == "skipped"
