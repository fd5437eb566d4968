"""Locust as a person starts it: in a process of its own, since it patches the one it is imported into."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import loadtest
from loadtest.conductor.processes import free_port
from loadtest.results import RunRows, load_results
from loadtest.run_folder import RunFolder

LOCUSTFILE = Path(loadtest.__file__).parent / "qwen.py"
REPOSITORY = LOCUSTFILE.parents[1]
WAIT_S_MAX = 60.0
"""Longer than a busy machine needs: only what never comes runs into it."""


def two_processes() -> tuple[str, ...]:
    """Two workers, and a master on a port of its own: tests run beside each other."""
    port = str(free_port())
    bind = ("--master-bind-host", "127.0.0.1", "--master-bind-port", port)
    return ("--processes", "2", *bind, "--master-port", port)


def start_locust(
    home: Path,
    options: Sequence[str],
    *,
    locustfile: Path = LOCUSTFILE,
    environ: Mapping[str, str] | None = None,
    prepare: Callable[[], None] = lambda: None,
    prefix: Sequence[str] = (),
) -> subprocess.Popen[str]:
    """In `home`, where its runs go; in a process group of its own, as a shell would start it.

    `prefix`: what starts it elsewhere, see machines.py.
    """

    def before_exec() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        prepare()

    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("LOCUST_", "ULLAGE_"))
    }
    return subprocess.Popen(
        [*prefix, sys.executable, "-m", "locust", "-f", str(locustfile), "--no-audit", *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=home,
        env={**inherited, "PYTHONPATH": str(REPOSITORY), **(environ or {})},
        preexec_fn=before_exec,
        process_group=0,
    )


def run_of(home: Path) -> tuple[RunFolder, RunRows]:
    """The one run of `home`, and its rows."""
    (root,) = (home / "runs").iterdir()
    folder = RunFolder.open(root)
    return folder, load_results(folder)


def wait_for(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Looks until `happened`; fails when the process ends before, or when it never does."""
    end_s = time.monotonic() + WAIT_S_MAX
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end_s, "it did not happen"
        time.sleep(0.02)


def answers_of(home: Path) -> int:
    """Requests that have ended so far, in a run that is still written."""
    texts = (home / "runs").glob("*/records/*.jsonl")
    return sum(text.read_bytes().count(b'"kind":"request"') for text in texts)


def users_at_work(home: Path) -> set[str]:
    """The load processes that have written an answer so far."""
    texts = (home / "runs").glob("*/records/*.jsonl")
    return {text.name[:3] for text in texts if b'"kind":"request"' in text.read_bytes()}
