"""Real load processes to do harm to: Locust or `ullage signoff` against the twin, each in its own folder."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

import loadtest
from loadtest.access import NO_AUDIT_VARIABLE
from loadtest.conductor.processes import free_port
from loadtest.records import RequestIssued, RequestRecord
from loadtest.results import RunRows, load_results
from loadtest.row_file import Damage, read_rows
from loadtest.run_folder import RunFolder

LOCUSTFILE = Path(loadtest.__file__).parent / "qwen.py"
SCENARIO = """
name: harm
input_tokens: {kind: constant, tokens: 16}
output_tokens: {kind: constant, tokens: 48}
settle_s: 0.5
spawn_rate_per_s: 200
stages: [{users: 6, hold_s: 40}]
limits: {ttft_s: 2.0}
"""
ENVIRON = {
    **{name: value for name, value in os.environ.items() if not name.startswith(("LOCUST_", "ULLAGE_"))},
    "PYTHONPATH": os.pathsep.join((str(LOCUSTFILE.parents[1]), str(Path(__file__).parent))),
    NO_AUDIT_VARIABLE: "1",  # it takes three seconds, and is not what is tested
}
POLL_S = 0.02
LIMIT_S = 60.0
Limits = Mapping[int, tuple[int, int]]


def until(condition: Callable[[], object], within_s: float = LIMIT_S) -> float:
    """Seconds until `condition` held; fails when it does not in time."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < within_s, f"not within {within_s:g} s"
        time.sleep(POLL_S)
    return time.monotonic() - begun


def held(seconds: float) -> str:
    return SCENARIO.replace("hold_s: 40", f"hold_s: {seconds:g}")


def crew() -> tuple[str, ...]:
    """Two load processes and a master, on a port of their own."""
    port = str(free_port())
    loopback = "--master-bind-host", "127.0.0.1", "--master-bind-port", port, "--master-port", port
    return "--processes", "2", *loopback


@dataclass(slots=True)
class Load:
    """One running load, and what it left when it has ended."""

    process: subprocess.Popen[str]
    home: Path
    errors: str = ""
    family: set[psutil.Process] = field(default_factory=set)
    """Everything it started, as far as it was looked for."""

    @property
    def root(self) -> Path:
        (root,) = (self.home / "runs").iterdir()
        return root

    @property
    def folder(self) -> RunFolder:
        return RunFolder.open(self.root)

    def rows(self) -> RunRows:
        return load_results(self.folder)

    def answered(self) -> int:
        """Requests that ended so far: what one row each says, also while a line is being written."""
        texts = (self.home / "runs").glob("*/records/*.jsonl")
        return sum(isinstance(row, RequestRecord) for text in texts for row in read_rows(text, Damage()))

    def in_flight(self) -> int:
        texts = (self.home / "runs").glob("*/records/*.jsonl")
        rows = [row for text in texts for row in read_rows(text, Damage())]
        ended = sum(isinstance(row, RequestRecord) for row in rows)
        return sum(isinstance(row, RequestIssued) for row in rows) - ended

    def under_way(self, requests: int = 12) -> None:
        """Waits until so many requests were answered, and takes note of every process of the run."""
        until(lambda: self.process.poll() is not None or self.answered() >= requests)
        assert self.process.poll() is None, self.process.communicate()[1]
        self.remember()

    def remember(self) -> None:
        """Takes note of every process of the run."""
        self.family = set(psutil.Process(self.process.pid).children(recursive=True))

    def workers(self) -> list[psutil.Process]:
        """The processes that hold a records file open."""
        texts = {str(path) for path in self.root.glob("records/*.jsonl")}
        return [one for one in self.family if {file.path for file in one.open_files()} & texts]

    def ended(self, within_s: float = LIMIT_S) -> int:
        """The exit code; waits for it."""
        _, self.errors = self.process.communicate(timeout=within_s)
        return self.process.returncode

    def report(self) -> subprocess.CompletedProcess[str]:
        """`ullage report` of what is there."""
        return ullage("report", self.root)

    def orphans(self) -> list[psutil.Process]:
        """What it started and still runs."""
        return [one for one in self.family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


def ullage(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loadtest.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, env=ENVIRON)


@contextlib.contextmanager
def load(
    home: Path, command: list[str], *options: str, limits: Limits | None = None, scenario: str = SCENARIO
) -> Iterator[Load]:
    """Starts it, and ends whatever is left of it."""
    (home / "harm.yaml").write_text(scenario)

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it for what runs behind
        for limit, values in (limits or {}).items():
            resource.setrlimit(limit, values)

    process = subprocess.Popen(
        [*command, "--scenario", str(home / "harm.yaml"), "--runs-dir", str(home / "runs"), *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=home,
        env=ENVIRON,
        preexec_fn=prepare,
        process_group=0,
    )
    running = Load(process, home)
    try:
        yield running
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            running.family |= set(psutil.Process(process.pid).children(recursive=True))
        process.kill()
        for one in running.orphans():
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        process.communicate(timeout=LIMIT_S)


LOCUST = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--only-summary"]
SIGNOFF = [sys.executable, "-m", "loadtest.cli", "signoff"]
TWIN = [sys.executable, "-m", "estimator.twin.server", "--profile", "tiny", "--port", "0"]


@contextlib.contextmanager
def twin(*options: str) -> Iterator[str]:
    """The base URL of a simulated server on a free loopback port."""
    process = subprocess.Popen(
        [*TWIN, "--exit-with-stdin", *options],
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
        process.wait(timeout=LIMIT_S)
        process.stdout.close()


def main(*command: str) -> int:
    """Runs a load against a twin of its own: in a namespace nobody else's can be reached."""
    with twin() as host:
        return subprocess.run([*command, "--host", host]).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
