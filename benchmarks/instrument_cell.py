"""One cell of the table: a client runs, and is looked at from outside while all its streams are up."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).parent
PORT: Final = 18_700
TTFT_MS, ITL_MS, TOKENS = 100, 20, 200
SERVER_CORE, CLIENT_CORE = 0, 1
BIN_MS: Final = 0.01
WINDOW_S: Final = 5.0
SETTLE_S: Final = 1.0
CELL_S_MAX: Final = 60.0
LATENESS_MS_MAX: Final = 5.0
LATENCY_WISH: Final = Path("/dev/cpu_dma_latency")
Bins = Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One client at one number of streams. `up_s` is how long its users take to arrive."""

    client: str
    streams: int
    up_s: float = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What one cell measured; None where that client does not say. Errors are against the server's truth."""

    cell: Cell
    sent_per_s: float
    cpu_us: float
    cores: float
    rss_mb: float
    start_s: float
    ttft_error_ms: tuple[float, float] | None
    itl_p99_ms: tuple[float, float] | None
    """Measured, and the server's own."""
    lateness_p99_ms: float | None = None
    stolen_ms: float | None = None
    """What the hypervisor took of the client's core from its start to its end; None: not counted here."""

    @property
    def keeps_up(self) -> bool:
        """On time with its sends, and not yet a gap behind with its reads."""
        offered = self.cell.streams * TOKENS / (TTFT_MS + ITL_MS * (TOKENS - 1)) * 1000
        on_time = (self.lateness_p99_ms or 0.0) <= LATENESS_MS_MAX
        return on_time and self.sent_per_s >= 0.95 * offered


class CellFailed(RuntimeError):  # noqa: N818  (reads as what happened)
    """One client gave no figures; the others still do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A cell without figures, and why."""

    cell: Cell
    reason: str


def compiled(name: str, folder: Path) -> Path:
    """The program NAME.c beside this file, built into the folder."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise SystemExit("the mock server and the floor are written in C: install a C compiler (`cc`) first")
    program = folder / name
    subprocess.run([compiler, "-O2", "-o", program, HERE / f"{name}.c"], check=True)
    return program


class Server:
    def __init__(self, folder: Path) -> None:
        command = [compiled("instrument_server", folder), PORT, TTFT_MS, ITL_MS, TOKENS, SERVER_CORE]
        self._process = subprocess.Popen([str(word) for word in command])
        for _ in range(100):
            try:
                self.counters()
            except OSError:
                time.sleep(0.05)
            else:
                return
        raise SystemExit("the mock server did not start")

    def counters(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/counters", timeout=5) as answer:
            told: dict[str, Any] = json.load(answer)
            return told

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def awake() -> Iterator[None]:
    """Idle cores poll instead of halting, until this ends: a busy host lets a core that halted wait.

    Linux keeps to the wake-up latency written to that file, in microseconds, while it is open. Where that may
    not be asked for, nothing changes.
    """
    with contextlib.ExitStack() as kept:
        with contextlib.suppress(OSError):
            wish = kept.enter_context(LATENCY_WISH.open("wb", buffering=0))
            wish.write((0).to_bytes(4, "little"))
        yield


def on_client_core() -> None:
    os.sched_setaffinity(0, {CLIENT_CORE})
    try:
        # not a real-time rank: Linux takes that away for 50 ms a second once anybody else wants the core
        os.setpriority(os.PRIO_PROCESS, 0, -10)
    except PermissionError:
        return  # not root: noise of the machine is part of the figures then


def measured(server: Server, cell: Cell, command: Sequence[str], folder: Path) -> Figures | Failure:
    """Of a client that fails, its last words go to stderr."""
    log = folder / "client.log"
    try:
        return measure(server, cell, command, folder)
    except CellFailed as error:
        reason = str(error)
    except (OSError, ValueError, LookupError, ArithmeticError) as error:  # it ended halfway, or told nothing
        reason = f"no figures: {type(error).__name__}: {error}"
    last = log.read_text(errors="replace")[-2000:] if log.exists() else ""
    print(f"{cell}: {reason}\n{last}", file=sys.stderr)
    return Failure(cell=cell, reason=reason)


def measure(server: Server, cell: Cell, command: Sequence[str], folder: Path) -> Figures:
    """Runs one client and looks twice while all its streams are up. It has ended then."""
    out = folder / "seen.json"
    out.unlink(missing_ok=True)
    pause_s = TOKENS * ITL_MS / 1000 + 1.0  # streams of the last client that still run
    while server.counters()["chunks"]:
        time.sleep(min(pause_s, 0.5))
    started_ns, stolen_ms = time.perf_counter_ns(), stolen_ms_of(CLIENT_CORE)
    environment = os.environ | {"INSTRUMENT_OUT": str(out), "PYTHONPATH": str(HERE.parent)}
    with (folder / "client.log").open("wb") as log:
        client = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, preexec_fn=on_client_core, cwd=folder
        )
    try:
        figures = _figures(server, cell, client, started_ns, folder)
    finally:
        client.kill()
        client.wait()
    if stolen_ms is None:
        return figures
    return replace(figures, stolen_ms=(stolen_ms_of(CLIENT_CORE) or 0.0) - stolen_ms)


def _figures(
    server: Server, cell: Cell, client: subprocess.Popen[bytes], started_ns: int, folder: Path
) -> Figures:
    told = [wait_for_requests(server, cell.streams, client)]
    time.sleep(SETTLE_S)
    told.append(server.counters())
    cpu_s, at_s = cpu_of(client.pid), time.perf_counter()
    time.sleep(WINDOW_S)
    window = server.counters()
    used_s, passed_s = cpu_of(client.pid) - cpu_s, time.perf_counter() - at_s
    rss_mb = rss_mb_of(client.pid)
    try:
        client.wait(CELL_S_MAX)
    except subprocess.TimeoutExpired:
        client.send_signal(signal.SIGKILL)
        client.wait()
    told += [window, server.counters()]
    truth = {name: sum((Counter(one[name]) for one in told), Counter()) for name in ("ttft", "gap")}
    seen = read_seen(cell, folder / "seen.json", folder / "client.log")
    return Figures(
        cell=cell,
        sent_per_s=window["chunks"] / passed_s,
        cpu_us=used_s / window["chunks"] * 1e6,
        cores=used_s / passed_s,
        rss_mb=rss_mb,
        start_s=(told[0]["first_request_ns"] - started_ns) / 1e9,
        ttft_error_ms=errors(seen.get("ttft"), truth["ttft"]),
        itl_p99_ms=None if not seen.get("gap") else (p99_ms(seen["gap"]), p99_ms(truth["gap"])),
        lateness_p99_ms=p99_ms(seen["lateness"]) if seen.get("lateness") else None,
    )


def wait_for_requests(server: Server, streams: int, client: subprocess.Popen[bytes]) -> dict[str, Any]:
    """All that was sent until each stream had asked once; the looks in between are added up."""
    total: dict[str, Any] = {"requests": 0, "first_request_ns": None, "ttft": Counter(), "gap": Counter()}
    until_s = time.perf_counter() + CELL_S_MAX
    while total["requests"] < streams:
        if client.poll() is not None or time.perf_counter() > until_s:
            raise CellFailed("the client ended, or was too slow, before its streams were up")
        # what starts beside the client must not disturb its first answers
        time.sleep(0.05 if total["requests"] else 0.01)
        move_children(client.pid)
        told = server.counters()
        total["requests"] += told["requests"]
        total["first_request_ns"] = total["first_request_ns"] or told["first_request_ns"]
        for name in ("ttft", "gap"):
            total[name].update(told[name])
    return total


def read_seen(cell: Cell, out: Path, log: Path) -> dict[str, Any]:
    if cell.client == "vllm bench serve":
        return vllm_seen(out)
    text = log.read_text() if cell.client == "C reader" else out.read_text() if out.exists() else "{}"
    seen: dict[str, Any] = json.loads(text or "{}")
    return seen


def vllm_seen(out: Path) -> dict[str, Any]:
    """vLLM says a mean and a p99: as bins that have them."""
    body = json.loads(out.read_text())
    made: dict[str, Any] = {}
    for ours, theirs in (("ttft", "ttft"), ("gap", "itl")):
        made[ours] = {"mean": body[f"mean_{theirs}_ms"], "p99": body[f"p99_{theirs}_ms"]}
    return made


def mean_ms(bins: Mapping[str, float]) -> float:
    if "mean" in bins:
        return bins["mean"]
    return sum((int(bin_) + 0.5) * n for bin_, n in bins.items()) / sum(bins.values()) * BIN_MS


def p99_ms(bins: Mapping[str, float]) -> float:
    if "p99" in bins:
        return bins["p99"]
    left = 0.99 * sum(bins.values())
    for bin_ in sorted(bins, key=int):
        left -= bins[bin_]
        if left < 0:
            return (int(bin_) + 0.5) * BIN_MS
    return 0.0


def errors(seen: Bins | None, truth: Bins) -> tuple[float, float] | None:
    if not seen or not truth:
        return None
    return mean_ms(seen) - mean_ms(truth), p99_ms(seen) - p99_ms(truth)


def move_children(pid: int) -> None:
    """What Ullage starts beside its client, the collector, goes to the other core: it sends no request."""
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            with contextlib.suppress(OSError):
                os.sched_setaffinity(int(child), {SERVER_CORE})
                os.setpriority(os.PRIO_PROCESS, int(child), 0)


def cpu_of(pid: int) -> float:
    """Seconds on a core so far, all threads, from the scheduler's own clock."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def stolen_ms_of(core: int) -> float | None:
    """So far, since the machine started: the eighth number of the core's line in /proc/stat, in ticks."""
    for line in Path("/proc/stat").read_text().splitlines():
        name, *ticks = line.split()
        if name == f"cpu{core}" and len(ticks) >= 8:
            return int(ticks[7]) * 1000 / os.sysconf("SC_CLK_TCK")
    return None


def rss_mb_of(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
