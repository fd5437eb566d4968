"""Something live to look at: a twin of each engine, a load test of one of them, GPUs, and a Prometheus."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import aiohttp
import stub
from prometheus_client import CollectorRegistry, generate_latest

from loadtest.collector.exporter import RunPage
from loadtest.conductor.processes import free_port

FOLDER: Final = Path(__file__).parent
sys.path.append(str(FOLDER.parent / "tests/support"))

from fake_run import FakeRun, FakeStage, verdict_of  # noqa: E402  (made-up runs are the tests' own)
from replay import Replay  # noqa: E402

ENGINES: Final = ("vllm", "lmdeploy")
MODEL: Final = "tiny"
LOADED: Final = "vllm"
"""The engine that a real load test runs against; the others are asked a little."""
SCENARIO: Final = {
    "name": "watched",
    "input_tokens": {"kind": "constant", "tokens": 32},
    "output_tokens": {"kind": "constant", "tokens": 24},
    "settle_s": 1.0,
    "stages": [{"users": users, "hold_s": 8.0} for users in (4, 8, 12)],
    "limits": {"ttft_s": 5.0, "tpot_s": 1.0, "e2e_s": 20.0},
}
STREAMS: Final = 4
"""Requests in flight at each twin: enough for every histogram, little for the machine."""
LOCUST_SAID: Final = "locust.txt"
READY_S: Final = 30.0


@dataclass(slots=True)
class Scene:
    """`prometheus` is an address. What is ended or begun again keeps its address."""

    prometheus: str
    began_s: float
    folder: Path
    exporter_port: int
    twins: dict[str, tuple[int, subprocess.Popen[str]]]
    signed: ThreadingHTTPServer | None
    load_test: subprocess.Popen[str] | None = None

    def restart(self, engine: str) -> None:
        port, process = self.twins[engine]
        _end(process)
        self.twins[engine] = _twin(engine, port)

    def begin_load_test(self, scenario: Path | None = None, *options: str) -> None:
        """A real one, with Locust's page, so that it stays when its plan is over and its verdict is seen."""
        scenario = scenario or _scenario(self.folder)
        self.load_test = _load_test(
            self.folder, self.twins[LOADED][0], self.exporter_port, scenario, *options
        )

    def end_load_tests(self) -> None:
        if self.signed is not None:
            self.signed.shutdown()
            self.signed.server_close()
            self.signed = None
        if self.load_test is not None:
            if self.load_test.poll() is not None:
                said = (self.folder / LOCUST_SAID).read_text("utf-8")
                print(f"the load test ended by itself: {said[-500:]}", file=sys.stderr)
            _end(self.load_test)
            self.load_test = None


@contextmanager
def live(folder: Path, *, shows_signed: bool = True) -> Iterator[Scene]:
    """Everything on loopback, on free ports, and gone at the end. Needs `prometheus` on the PATH.

    `shows_signed`: beside the load test there is the page of one that was signed before.
    """
    with ExitStack() as stack:
        gpus = _serve(stub.gpu_page)
        signed = _serve(signed_page(folder)) if shows_signed else None
        stack.callback(gpus.server_close)
        twins = {engine: _twin(engine) for engine in ENGINES}
        scene = Scene(
            prometheus="",
            began_s=time.time(),
            folder=folder,
            exporter_port=free_port(),
            twins=twins,
            signed=signed,
        )
        stack.callback(lambda: [_end(process) for _, process in scene.twins.values()])
        stack.callback(scene.end_load_tests)
        jobs = {engine: port for engine, (port, _) in twins.items()}
        jobs |= {"loadtest": scene.exporter_port, "gpus": gpus.server_port}
        if signed is not None:
            jobs["signed"] = signed.server_port
        scene.prometheus, process = _prometheus(folder, jobs)
        stack.callback(_end, process)
        yield scene


async def load(scene: Scene) -> None:
    """Asks the twins no load test asks, until it is cancelled; one that begins again is asked later."""
    async with aiohttp.ClientSession() as session:
        ports = [port for engine, (port, _) in scene.twins.items() if engine != LOADED]
        await asyncio.gather(*(_ask(session, port) for port in ports for _ in range(STREAMS)))


async def _ask(session: aiohttp.ClientSession, port: int) -> None:
    message = {"role": "user", "content": "What is ullage? " * 8}
    body = {"model": MODEL, "messages": [message], "max_tokens": 48, "stream": True}
    while True:
        try:
            async with session.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body) as answer:
                await answer.read()
        except aiohttp.ClientError:
            await asyncio.sleep(0.1)


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    process.wait(timeout=READY_S)


def _twin(engine: str, port: int = 0) -> tuple[int, subprocess.Popen[str]]:
    command = [sys.executable, "-m", "estimator.twin.server", "--profile", MODEL, "--engine", engine]
    process = subprocess.Popen(
        [*command, "--port", str(port)], stdout=subprocess.PIPE, text=True, cwd=FOLDER.parent
    )
    assert process.stdout is not None
    said = process.stdout.readline()  # "twin ready on http://127.0.0.1:PORT model=tiny"
    if "ready" not in said:
        raise SystemExit(f"the twin of {engine} did not start")
    return int(said.split("model=")[0].rsplit(":", 1)[1]), process


def _scenario(folder: Path) -> Path:
    path = folder / "watched.yaml"
    path.write_text(json.dumps(SCENARIO), "utf-8")  # JSON is YAML
    return path


def _load_test(
    folder: Path, twin_port: int, exporter_port: int, scenario: Path, *options: str
) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "locust", "-f", str(FOLDER.parent / "loadtest/qwen.py"), "--no-audit"]
    command += ["--host", f"http://127.0.0.1:{twin_port}", "--scenario", str(scenario), *options]
    command += ["--autostart", "--web-host", "127.0.0.1", "--web-port", str(free_port())]
    command += ["--exporter-port", str(exporter_port), "--only-summary"]
    with (folder / LOCUST_SAID).open("w", encoding="utf-8") as said:
        return subprocess.Popen(command, text=True, cwd=folder, env=_environ(), stdout=said, stderr=said)


def _environ() -> dict[str, str]:
    """This repository, and nothing that was set for another load test."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith(("LOCUST_", "ULLAGE_"))}
    return {**kept, "PYTHONPATH": str(FOLDER.parent)}


def _serve(page: Callable[[], bytes]) -> ThreadingHTTPServer:
    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = page()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            with suppress(OSError):  # Prometheus would not wait
                self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (likewise)
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def _prometheus(folder: Path, jobs: dict[str, int]) -> tuple[str, subprocess.Popen[str]]:
    config = {
        "global": {"scrape_interval": "3s", "scrape_timeout": "3s", "evaluation_interval": "5s"},
        "rule_files": [str(path) for path in rule_files()],
        "scrape_configs": [
            {"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
            for job, port in jobs.items()
        ],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config), "utf-8")  # JSON is YAML
    log = (folder / "prometheus.log").open("w+", encoding="utf-8")
    process = subprocess.Popen(
        [  # the one on the PATH is the one that apt installs
            "prometheus",
            f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/data",
            "--web.listen-address=127.0.0.1:0",
        ],
        stderr=log,
        text=True,
    )
    return _address(process, folder / "prometheus.log"), process


def _address(process: subprocess.Popen[str], log: Path) -> str:
    """Prometheus names the port it was given in its log only."""
    until = time.monotonic() + READY_S
    while time.monotonic() < until and process.poll() is None:
        for line in log.read_text("utf-8").splitlines():
            if "Listening on" in line and "address=" in line:
                return "http://" + line.split("address=")[1].split()[0].strip('"')
        time.sleep(0.1)
    raise SystemExit(f"Prometheus did not start: {log.read_text('utf-8')[-500:]}")


def signed_page(folder: Path) -> Callable[[], bytes]:
    """The exporter's page after a run that was signed, made by arithmetic: a slow machine signs nothing."""
    run = FakeRun(stages=(FakeStage(users=20), FakeStage(users=30)), model=MODEL)
    replay = Replay(run, folder, workers=2)
    replay.play().judged(verdict_of(run))
    registry = CollectorRegistry(auto_describe=False)
    registry.register(RunPage(replay.standing.figures))
    page = generate_latest(registry)
    return lambda: page


def rule_files() -> Sequence[Path]:
    return sorted((FOLDER / "rules").glob("*.yml"))
