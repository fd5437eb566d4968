"""The whole loop in one call: twin when no host is given, preflight, load, report."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import loadtest
from estimator.capacity import KvPool
from estimator.errors import EXIT_UNREACHABLE
from estimator.spec import EngineName
from estimator.twin.profile import read_profile
from loadtest.access import USERS_CAP, Access
from loadtest.conductor.audit.preflight import audit_before_load
from loadtest.conductor.prepare import PreflightError, PreparedRun, RunRequest, prepare_run
from loadtest.conductor.processes import STOP_S, end_process, free_port
from loadtest.conductor.soak_news import SoakNews
from loadtest.conductor.stop_signals import Asked, stop_signals, supervised_environ
from loadtest.named_server import NamedServer
from loadtest.origin import parse_origin
from loadtest.records import Event
from loadtest.row_file import Damage, read_rows
from loadtest.run_folder import RunFolder
from loadtest.scenario import Scenario, limits_text
from loadtest.telemetry import Telemetry
from loadtest.textbook_facts import TextbookFacts

if TYPE_CHECKING:  # numpy costs a tenth of a second
    from loadtest.conductor.past import Past

LOCUSTFILES: Final = {"vllm": "qwen.py", "lmdeploy": "qwen_lmdeploy.py"}
POLL_S: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class SignoffRequest:
    """What a person asked for; without a host the scenario's twin stands in."""

    scenario: Scenario
    host: str | None
    engine: EngineName
    model: str | None
    max_num_seqs: int | None
    max_model_len: int | None
    pool: KvPool | None
    """Computed from model and GPU, when a person named them."""
    textbook: TextbookFacts | None = None
    """What the textbook says of the two."""
    named: NamedServer | None = None
    """What the server was started as; of the twin we start we know it ourselves."""
    processes: int
    runs_root: Path
    access: Access = field(default_factory=Access)
    users_cap: int = USERS_CAP
    allow_public_host: bool = False
    telemetry: Telemetry = field(default_factory=Telemetry)
    audits: bool = True
    """Look at this machine and at one answer before the load."""
    signed_by: str | None = None
    """Of a soak: the run whose signed number it holds."""
    past: Past | None = None
    """The interrupted run that this one continues."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedOff:
    """A load that was driven, and the folder whose rows the report is made of."""

    folder: RunFolder
    was_interrupted: bool


def sign_off(request: SignoffRequest, say: Callable[[str], None]) -> SignedOff:
    """Runs the load. Raises PreflightError, and KeyboardInterrupt when it was told to end at once."""
    if request.host is not None:
        return _load(request, request.host, request.max_num_seqs, say)
    if request.scenario.twin is None:
        raise PreflightError("give --host, or name a `twin` in the scenario to stand in for the server")
    profile = read_profile(request.scenario.twin)
    say(f"no --host: starting the simulated server {request.scenario.twin!r} on loopback")
    with running_twin(request.scenario.twin) as host:
        standing_in = replace(request, named=NamedServer(twin=request.scenario.twin))
        return _load(standing_in, host, request.max_num_seqs or profile.max_num_seqs, say)


def _load(request: SignoffRequest, host: str, slots: int | None, say: Callable[[str], None]) -> SignedOff:
    origin = parse_origin(host, request.access)
    if origin.warning is not None:
        say(origin.warning)
    run = prepare_run(
        RunRequest(
            origin=origin,
            scenario=request.scenario,
            engine=request.engine,
            runs_root=request.runs_root,
            model=request.model,
            max_num_seqs=slots,
            max_model_len=request.max_model_len,
            pool=request.pool,
            textbook=request.textbook,
            named=request.named,
            processes=request.processes,
            users_cap=request.users_cap,
            allow_public_host=request.allow_public_host,
            telemetry=request.telemetry,
            signed_by=request.signed_by,
            past=request.past,
        ),
        audit=audit_before_load if request.audits else None,
    )
    for check in run.manifest.audit:
        if check.level == "amber":
            say(f"caution: {check.sentence}")
    if request.pool is not None and run.prediction is not None and run.prediction.pool != request.pool:
        shown = run.prediction.pool.blocks
        say(f"model and GPU make {request.pool.blocks:,} KV blocks, the server has {shown:,}")
    say(f"{run.manifest.model} at {host}: {_planned(run)}")
    say(f"limits: {limits_text(run.scenario.limits)}")
    was_interrupted = run_load(run, processes=request.processes, say=say)
    return SignedOff(folder=run.folder, was_interrupted=was_interrupted)


def _planned(run: PreparedRun) -> str:
    stages, search = run.manifest.stages, run.scenario.search
    if search is not None:
        return f"a search, at most {search.max_minutes:g} minutes"
    left = stages[run.manifest.stages_held :]
    held = f", {len(left)} of them left" if run.manifest.parts else ""
    return f"{len(stages)} stages{held}, {sum(stage.hold_s for stage in left) / 60:.1f} minutes"


@contextmanager
def running_twin(profile: str) -> Iterator[str]:
    """Starts the simulated server on a free loopback port and yields its base URL; ends it after.

    Raises PreflightError with the twin's own last words when it does not come up.
    """
    command = [sys.executable, "-m", "estimator.twin.server", "--profile", profile, "--port", "0"]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        twin = subprocess.Popen(  # noqa: S603  (our own module, no shell)
            [*command, "--exit-with-stdin"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        try:
            assert twin.stdout is not None
            ready = twin.stdout.readline()
            if not ready.startswith("twin ready on "):
                twin.wait(timeout=STOP_S)
                errors.seek(0)
                raise PreflightError(_last_line(errors.read()) or "the simulated server did not start")
            yield ready.split()[3]
        finally:
            end_process(twin)


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""


def run_load(run: PreparedRun, *, processes: int, say: Callable[[str], None]) -> bool:
    """Drives the prepared run with Locust, returns when it ended, and says whether it was told to.

    Locust's own output goes to locust.log in the run folder. Raises PreflightError when Locust could not
    even start, KeyboardInterrupt when we were told twice to end; whatever rows were written stay.
    """
    locustfile = Path(loadtest.__file__).parent / LOCUSTFILES[run.manifest.engine]
    command = [sys.executable, "-m", "locust", "-f", str(locustfile), "--headless"]
    command += ["--host", run.manifest.host, "--run-folder", str(run.folder.root)]
    if processes > 1:
        port = str(free_port())  # Locust's own would be taken by another run on this machine
        command += ["--processes", str(processes), "--master-bind-host", "127.0.0.1"]
        command += ["--master-bind-port", port, "--master-port", port]
    log = run.folder.log_path("locust")
    with log.open("wb") as output:
        locust = subprocess.Popen(  # noqa: S603  (our own locustfile, no shell)
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            env=supervised_environ(),
            # A group of its own: a terminal's Ctrl-C comes to us alone, and goes on once. No session of its
            # own: Linux shares busy processors between sessions first, and beside a server that spins a load
            # in another one waited for whole seconds.
            process_group=0,
        )
    with stop_signals() as asked:
        try:
            _follow(run, locust, asked, say)
        finally:
            if locust.poll() is None:
                locust.kill()  # told twice: rows are whole as they are
                locust.wait()
    if not run.folder.root.is_dir():
        raise PreflightError(f"{run.folder.root} was removed during the run: its rows are lost")
    if not run.folder.events_path.is_file():
        words = _last_line(log.read_text(encoding="utf-8", errors="replace"))
        raise PreflightError(words or f"Locust did not start; see {log}", exit_code=EXIT_UNREACHABLE)
    return asked.times > 0


def _follow(
    run: PreparedRun, locust: subprocess.Popen[str], asked: Asked, say: Callable[[str], None]
) -> None:
    """One line a stage, and of a soak one a minute: what a person sees is what the report will read."""
    told, was_told_to_end, start_s = 0, False, time.monotonic()
    news = SoakNews(run.folder, run.manifest.stages) if run.manifest.is_soak else None
    while locust.poll() is None:
        time.sleep(POLL_S)
        if asked.times and not was_told_to_end:
            was_told_to_end = True
            say("interrupted: waiting for Locust to write what it has; once more ends it at once")
            locust.terminate()
        stages = _stage_events(run.folder.events_path)
        for event in stages[told:]:
            say(_told(event, len(run.manifest.stages)))
        told = len(stages)
        if news is not None and (line := news.line(time.monotonic() - start_s)) is not None:
            say(line)


def _told(event: Event, stages: int) -> str:
    data = event.data
    if not stages:  # of a search nobody knows how many there will be
        return str(data["label"])
    asked = f"{data['users']} users" if data["users"] else "a dip, nothing is asked"
    return f"stage {int(data['index'] or 0) + 1} of {stages}: {asked}"


def _stage_events(path: Path) -> list[Event]:
    if not path.is_file():
        return []
    return [row for row in read_rows(path, Damage()) if isinstance(row, Event) and row.event == "stage"]
