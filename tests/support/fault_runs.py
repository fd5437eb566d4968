"""Whole runs against servers that fail: `ullage signoff` in a process of its own, and what it left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import yaml
from fault_server import ANY, LAST_CHUNK, STREAM_HEAD, FaultServer, Script, Wait, events, listening, plain

from loadtest.records import Event
from loadtest.results import RunRows, load_results
from loadtest.row_file import Damage, read_rows
from loadtest.run_folder import RunFolder, RunFolderError

ROOT: Final = Path(__file__).parents[2]
RUN_S_MAX: Final = 90.0
LOOK_S: Final = 0.3
MODELS: Final = plain("200 OK", b'{"data":[{"id":"m","max_model_len":4096}]}')
NOT_FOUND: Final = plain("404 Not Found", b"{}")
CANARY: Final = "sk-CANARY-5b1f0c2e9d7a4f36"
"""The API key of every run here: nobody may ever read it again."""
COMPLETIONS: Final = "/v1/completions"
LOAD: Final = "the load"
LENGTH: Final = b'"max_tokens":4,'
"""By its length the load's request is known; the one before it asks for more."""
SCENARIO: Final[Mapping[str, Any]] = {
    "name": "faults",
    "input_tokens": {"kind": "constant", "tokens": 16},
    "output_tokens": {"kind": "constant", "tokens": 4},
    "settle_s": 0.5,
    "spawn_rate_per_s": 50,
    "failure_pause_s": 0.2,
    "stages": [{"users": 4, "hold_s": 8}],
    "limits": {"percentile": 90},
}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run did and left behind; `folder` is None when it never began."""

    exit_code: int
    out: str
    err: str
    took_s: float
    home: Path
    folder: RunFolder | None
    fault_ns: int | None = None
    """When the fault was made, on the clock of the rows."""
    keys_in_process_list: int = 0
    server: FaultServer | None = None

    def seen_by(self, server: FaultServer) -> Outcome:
        """With what a server can tell of it."""
        return replace(self, server=server)

    @cached_property
    def rows(self) -> RunRows:
        assert self.folder is not None, self.err
        return load_results(self.folder)

    @cached_property
    def report(self) -> Mapping[str, Any]:
        assert self.folder is not None, self.err
        report: Mapping[str, Any] = json.loads(self.folder.report_path("json").read_text(encoding="utf-8"))
        return report

    @property
    def status(self) -> str:
        return str(self.report["status"])

    @property
    def client_was_late(self) -> bool:
        """This machine was too busy to hold the load: the run is void, as it should be, and tells nothing."""
        if self.folder is None:
            return False
        seen = self.report["observation"]
        idle = [fault for stage in seen["stages"] for fault in stage["faults"] if "in flight" in fault]
        return bool(seen["client"]["faults"] or idle)

    @property
    def outcomes(self) -> Counter[str]:
        return Counter(request.outcome for request in self.rows.requests)

    @property
    def gaps(self) -> set[str]:
        """Why the server's page could not be read."""
        return {sample.gap for sample in self.rows.samples if sample.gap is not None}

    def everything_told(self) -> bytes:
        """What anybody can read afterwards: both outputs, and every file of the run."""
        files = [path.read_bytes() for path in sorted(self.home.rglob("*")) if path.is_file()]
        return b"\n".join([self.out.encode(), self.err.encode(), *files])


def good(*, prompt: int = 16, told: int | None = 4, sent: int = 4, gap_s: float = 0.05) -> Script:
    """A whole answer of `sent` tokens whose usage tells `told` of them; without any when that is None."""
    token = '{"choices":[{"index":0,"text":"a","finish_reason":%s}]}'
    pieces: list[Any] = [STREAM_HEAD]
    for at in range(sent):
        pieces += [Wait(gap_s), events(token % ('"length"' if at == sent - 1 else "null"))]
    usage = '{"choices":[],"usage":{"prompt_tokens":%d,"completion_tokens":%s}}'
    pieces.append(events(*([] if told is None else [usage % (prompt, told)]), "[DONE]") + LAST_CHUNK)
    return tuple(pieces)


class Engine(FaultServer):
    """Tells the requests of the load from the one that is asked before it."""

    def name_of(self, path: str, content: bytes) -> str:
        return LOAD if path == COMPLETIONS and LENGTH in content else path


@contextlib.contextmanager
def server_of(
    *answers: Script, first: Script | None = None, metrics: tuple[Script, ...] = ((NOT_FOUND,),)
) -> Iterator[tuple[FaultServer, str]]:
    """An OpenAI-compatible server and its base URL: these answers to the load in turn, `first` before it."""
    server = Engine(
        {
            "/v1/models": [(MODELS,)],
            COMPLETIONS: [first or good(told=32, sent=32, gap_s=0.002)],
            LOAD: answers,
            "/metrics": metrics,
            ANY: [(NOT_FOUND,)],
        }
    )
    with listening(server) as origin:
        yield server, str(origin)


@dataclass(eq=False)
class Twin:
    """A simulated server in a process of its own."""

    process: subprocess.Popen[str]
    host: str

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)


@contextlib.contextmanager
def twin(home: Path, *faults: Mapping[str, Any], port: int = 0) -> Iterator[Twin]:
    """A twin whose faults begin so many seconds after its start; gone when the block ends."""
    switches = home / "faults.yaml"
    switches.write_text(yaml.safe_dump({"faults": [dict(fault) for fault in faults]}), encoding="utf-8")
    command = [sys.executable, "-m", "estimator.twin.server", "--profile", "tiny", "--port", str(port)]
    with subprocess.Popen(
        [*command, "--faults", str(switches), "--exit-with-stdin"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as process:
        try:
            assert process.stdout is not None
            ready = process.stdout.readline()
            assert ready.startswith("twin ready on "), ready
            yield Twin(process=process, host=ready.split()[3])
        finally:
            process.kill()


def environment(**more: str) -> dict[str, str]:
    return dict(os.environ, COLUMNS="120", PYTHONPATH=str(ROOT), **more)


@dataclass(eq=False, kw_only=True)
class Run:
    """A sign-off under way."""

    home: Path
    process: subprocess.Popen[str]
    begun_s: float

    @property
    def folder(self) -> RunFolder | None:
        """None as long as there is none."""
        runs = self.home / "runs"
        with contextlib.suppress(RunFolderError):  # made this moment
            return next((RunFolder.open(root) for root in runs.glob("*")), None)
        return None

    @property
    def stages_begun(self) -> int:
        folder = self.folder
        if folder is None or not folder.events_path.is_file():
            return 0
        rows = read_rows(folder.events_path, Damage())
        return sum(isinstance(row, Event) and row.event == "stage" for row in rows)

    def ended(self, fault_ns: int | None = None) -> Outcome:
        seen = 0
        while True:
            try:
                out, err = self.process.communicate(timeout=LOOK_S)
                break
            except subprocess.TimeoutExpired:
                seen += keys_in_process_list()
                assert time.monotonic() - self.begun_s < RUN_S_MAX, "the run does not end"
        return Outcome(
            exit_code=self.process.returncode,
            out=out,
            err=err,
            took_s=time.monotonic() - self.begun_s,
            home=self.home,
            folder=self.folder,
            fault_ns=fault_ns,
            keys_in_process_list=seen,
        )


def keys_in_process_list() -> int:
    """How many command lines on this machine hold the key."""
    found = 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            found += CANARY.encode() in path.read_bytes()
    return found


def wait_for_stage(run: Run, number: int) -> None:
    """Looks again and again, because no file tells when another process has written to it."""
    while run.stages_begun < number:
        assert run.process.poll() is None, "the run ended before its stage began"
        time.sleep(LOOK_S)


def begin(home: Path, host: str, *options: str, audit: bool = False, **scenario: Any) -> Run:
    """`ullage signoff` against `host`, with or without its audit before the load, and a scenario's keys."""
    path = home / "scenario.yaml"
    path.write_text(yaml.safe_dump({**SCENARIO, **scenario}), encoding="utf-8")
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "loadtest.cli", "signoff", "--scenario", str(path), "--host", host),
            *("--runs-dir", str(home / "runs"), *(() if audit else ("--no-audit",)), *options),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(ULLAGE_API_KEY=CANARY),
    )
    return Run(home=home, process=process, begun_s=time.monotonic())


def sign_off(home: Path, host: str, *options: str, audit: bool = False, **scenario: Any) -> Outcome:
    return begin(home, host, *options, audit=audit, **scenario).ended()
