"""Something live to look at: a twin of each engine under load, a load test's figures, and a Prometheus."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import aiohttp
import stub

FOLDER: Final = Path(__file__).parent
ENGINES: Final = ("vllm", "lmdeploy")
MODEL: Final = "tiny"
STREAMS: Final = 4
"""Requests in flight at each twin: enough for every histogram, little for the machine."""
READY_S: Final = 30.0


@dataclass(slots=True)
class Scene:
    """`prometheus` is an address. What is ended or begun again keeps its address."""

    prometheus: str
    began_s: float
    twins: dict[str, tuple[int, subprocess.Popen[str]]]
    exporter: ThreadingHTTPServer

    def restart(self, engine: str) -> None:
        port, process = self.twins[engine]
        _end(process)
        self.twins[engine] = _twin(engine, port)

    def end_load_test(self) -> None:
        self.exporter.shutdown()
        self.exporter.server_close()


@contextmanager
def live(folder: Path) -> Iterator[Scene]:
    """Everything on loopback, on free ports, and gone at the end. Needs `prometheus` on the PATH."""
    with ExitStack() as stack:
        exporter = _exporter()
        stack.callback(exporter.server_close)
        twins = {engine: _twin(engine) for engine in ENGINES}
        scene = Scene(prometheus="", began_s=time.time(), twins=twins, exporter=exporter)
        stack.callback(lambda: [_end(process) for _, process in scene.twins.values()])
        jobs = {engine: port for engine, (port, _) in twins.items()} | {"loadtest": exporter.server_port}
        scene.prometheus, process = _prometheus(folder, jobs)
        stack.callback(_end, process)
        yield scene


async def load(scene: Scene, seconds: float) -> None:
    """Asks both twins for `seconds`; a twin that is being restarted is asked again a little later."""
    until = time.monotonic() + seconds
    async with aiohttp.ClientSession() as session:
        ports = [port for port, _ in scene.twins.values()]
        await asyncio.gather(*(_ask(session, port, until) for port in ports for _ in range(STREAMS)))


async def _ask(session: aiohttp.ClientSession, port: int, until: float) -> None:
    message = {"role": "user", "content": "What is ullage? " * 8}
    body = {"model": MODEL, "messages": [message], "max_tokens": 48, "stream": True}
    while time.monotonic() < until:
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


def _exporter() -> ThreadingHTTPServer:
    began_s = time.monotonic()

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = stub.page(time.monotonic() - began_s)
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (likewise)
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def _prometheus(folder: Path, jobs: dict[str, int]) -> tuple[str, subprocess.Popen[str]]:
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "5s"},
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


def rule_files() -> Sequence[Path]:
    return sorted((FOLDER / "rules").glob("*.yml"))
