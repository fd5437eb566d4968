"""Real Locust drives real users against a small server on loopback: what a person types is what happens.

Locust patches the process it is imported into, so it runs in processes of its own here.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

import loadtest
from loadtest.results import RunRows, load_results
from loadtest.run_folder import RunFolder

LOCUSTFILE = Path(loadtest.__file__).parent / "qwen.py"
SCENARIO = """
name: short
input_tokens: {kind: constant, tokens: 8}
output_tokens: {kind: constant, tokens: 2}
settle_s: 0.5
spawn_rate_per_s: 100
stages: [{users: 6, hold_s: 2}, {users: 3, hold_s: 1}]
"""
TOKEN_S = 0.15


class Answers(BaseHTTPRequestHandler):
    """Enough of an OpenAI-compatible server: a token every TOKEN_S."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        known = {"/v1/models": {"data": [{"id": "m", "max_model_len": 1000}]}}
        self._answer(200 if self.path in known else 404, known.get(self.path, {}))

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for _ in range(asked["max_tokens"] - 1):
            self._chunk('{"choices":[{"text":"a","finish_reason":null}]}')
            time.sleep(TOKEN_S)
        self._chunk('{"choices":[{"text":"b","finish_reason":"length"}]}')
        usage = {"prompt_tokens": len(asked["prompt"]), "completion_tokens": asked["max_tokens"]}
        self._chunk(json.dumps({"choices": [], "usage": usage}))
        self._chunk("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def _chunk(self, data: str) -> None:
        body = f"data: {data}\n\n".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(body), body))

    def _answer(self, status: int, body: object) -> None:
        payload = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the base class names it so)
        pass


class QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was stopped in the middle closes its connection: that is what is tested."""


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    server = QuietServer(("127.0.0.1", 0), Answers)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def locust(
    home: Path, *options: str, scenario: str = SCENARIO, file_bytes_max: int | None = None
) -> subprocess.Popen[str]:
    (home / "short.yaml").write_text(scenario)

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if file_bytes_max is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes_max, file_bytes_max))

    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--only-summary"]
    command += ["--scenario", str(home / "short.yaml"), "--runs-dir", str(home / "runs"), *options]
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=home,
        env=dict(os.environ, PYTHONPATH=str(LOCUSTFILE.parents[1])),
        preexec_fn=prepare,
    )


def run_of(home: Path) -> tuple[RunFolder, RunRows]:
    (root,) = (home / "runs").iterdir()
    folder = RunFolder.open(root)
    return folder, load_results(folder)


def stages(rows: RunRows) -> list[object]:
    return [event.data["users"] for event in rows.events if event.event == "stage"]


@pytest.mark.parametrize("processes", [(), ("--processes", "2", "--master-bind-host", "127.0.0.1")])
def test_with_nothing_but_a_host_the_scenarios_stages_drive_and_every_row_is_whole(
    tmp_path: Path, host: str, processes: Sequence[str]
) -> None:
    _, errors = (process := locust(tmp_path, "--host", host, *processes)).communicate(timeout=40)
    folder, rows = run_of(tmp_path)
    assert (process.returncode, folder.read_manifest().state) == (0, "complete"), errors
    assert stages(rows) == [6, 3]
    assert Counter(request.outcome for request in rows.requests) == {"ok": len(rows.requests)}
    workers = 2 if processes else 1
    assert {request.worker for request in rows.requests} == set(range(workers))
    assert len({sample.target for sample in rows.samples if sample.source == "client"}) == workers
    assert all(request.ttft_s is not None and request.e2e_s >= TOKEN_S for request in rows.requests)


def test_users_rate_and_time_on_the_command_line_go_before_the_stages(tmp_path: Path, host: str) -> None:
    output, errors = locust(tmp_path, "--host", host, "-u", "4", "-r", "50", "-t", "2s").communicate(
        timeout=40
    )
    folder, rows = run_of(tmp_path)
    assert stages(rows) == [4], errors
    assert folder.read_manifest().state == "complete"
    assert f"ullage report {tmp_path / 'runs' / folder.run_id}" in output
    assert "TTFT" in errors + output


def test_a_disk_that_refuses_rows_stops_the_load_with_one_sentence(tmp_path: Path, host: str) -> None:
    process = locust(tmp_path, "--host", host, "-u", "6", "-r", "50", "-t", "30s", file_bytes_max=12_000)
    _, errors = process.communicate(timeout=20)  # long before its 30 s are over
    told = [line for line in errors.splitlines() if line.startswith("ullage: ")]
    assert process.returncode == 2
    assert any("cannot write" in line and "free space" in line for line in told), errors


@pytest.mark.parametrize(
    ("options", "words", "code"),
    [
        (("--host", "http://127.0.0.1:9"), "cannot reach", 3),
        (("--model", "other"), "does not serve 'other'", 2),
        (("--scenario", "missing.yaml"), "cannot read scenario", 2),
        (("--engine", "lmdeploy"), "set endpoint: chat", 2),
    ],
)
def test_what_cannot_start_says_why_in_one_sentence(
    tmp_path: Path, host: str, options: Sequence[str], words: str, code: int
) -> None:
    process = locust(tmp_path, "--host", host, *options)
    _, errors = process.communicate(timeout=20)
    (told,) = [line for line in errors.splitlines() if line.startswith("ullage: ")]
    assert words in told
    assert process.returncode == code
    assert "Traceback" not in errors


RAMP = """
from loadtest.conductor.ramp import ScenarioRamp
from loadtest.conductor.plan import Target
from loadtest.run_folder import PlannedStage

STAGE = PlannedStage(index=0, label="s", users=7, hold_s=9.0, settle_s=1.0, spawn_rate_per_s=5.0)

class Lead:
    def __init__(self, *, can_start=True):
        self.is_open, self.can_start, self.begun, self.plan = False, can_start, 0, [STAGE, None]
    def begin(self):
        self.begun += 1
        self.is_open = self.can_start
        return self.can_start
    def target(self, elapsed_s):
        stage = self.plan.pop(0)
        return stage and Target(stage=stage, users=stage.users, spawn_rate_per_s=stage.spawn_rate_per_s)

class Ramp(ScenarioRamp):
    pass

ramp = Ramp()
assert ramp.tick() is None, "without anybody who leads there is no load"
ramp.lead = lead = Lead()
assert (ramp.tick(), ramp.tick(), lead.begun) == ((7, 5.0), None, 1)
lead.is_open, lead.plan = False, [STAGE]  # stopped on the web page, then started again
assert (ramp.tick(), lead.begun) == ((7, 5.0), 2)
ramp.lead = Lead(can_start=False)
assert ramp.tick() is None, "a run that cannot start has no load"
assert Ramp.abstract is False and ScenarioRamp.abstract is True
"""


def test_the_ramp_opens_each_run_once_and_starts_again_after_a_stop() -> None:
    done = subprocess.run(
        [sys.executable, "-c", RAMP],
        capture_output=True,
        text=True,
        env=dict(os.environ, PYTHONPATH=str(LOCUSTFILE.parents[1])),
    )
    assert done.returncode == 0, done.stderr
