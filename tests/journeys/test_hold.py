"""Five hundred streams of thirty tokens a second, held for a minute by real Locust on the same two cores."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Final

import pytest
from c_compiler import c_compiler

import loadtest
from loadtest.reporter.latency import NEEDED_BY_LATENESS, exact_quantiles, send_lateness_s
from loadtest.reporter.question import answer, need_of, started, together
from loadtest.reporter.stages import LOAD_REACHED_RATIO, in_flight_mean, windows
from loadtest.results import load_results
from loadtest.run_folder import RunFolder

ROOT: Final = Path(loadtest.__file__).parents[1]
STREAMS: Final = 500
TTFT_MS, ITL_MS, TOKENS = 200, 33, 150
SETTLE_S, HOLD_S, SPAWN_PER_S = 4, 60, 250
SCENARIO: Final = f"""
name: hold
input_tokens: {{kind: constant, tokens: 32}}
output_tokens: {{kind: constant, tokens: {TOKENS}}}
settle_s: {SETTLE_S}
stages: [{{users: 1, hold_s: 10}}]
"""


@contextlib.contextmanager
def server(folder: Path) -> Iterator[int]:
    """The benchmarks' server on a port of loopback: it sends made-up bytes when they are due."""
    program = folder / "server"
    subprocess.run([c_compiler(), "-O2", "-o", program, ROOT / "benchmarks/instrument_server.c"], check=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    with subprocess.Popen([program, *map(str, (port, TTFT_MS, ITL_MS, TOKENS, -1))]) as process:
        try:
            wait_for(port, process)
            yield port
        finally:
            process.kill()


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(200):
        assert process.poll() is None
        with contextlib.suppress(OSError):
            client = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            client.request("GET", "/health")
            assert client.getresponse().status == 200
            client.close()
            return
        time.sleep(0.05)  # nobody tells when a port is listened on
    raise AssertionError("the server did not come up")


@pytest.mark.timeout(200)
def test_five_hundred_streams_are_held_for_a_minute(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hold.yaml").write_text(SCENARIO)
    with server(tmp_path) as port:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "locust", "-f", str(ROOT / "loadtest/qwen.py"), "--headless"),
                *("--only-summary", "--no-audit", "--host", f"http://127.0.0.1:{port}"),
                *("--scenario", str(tmp_path / "hold.yaml"), "--runs-dir", str(tmp_path / "runs")),
                *("-u", str(STREAMS), "-r", str(SPAWN_PER_S)),
                *("-t", f"{STREAMS // SPAWN_PER_S + SETTLE_S + HOLD_S}s"),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=180,
            env=dict(os.environ, PYTHONPATH=str(ROOT)),
        )
    (root,) = (tmp_path / "runs").iterdir()
    rows = load_results(RunFolder.open(root))
    (window,) = windows(rows.events)
    samples = [
        sample.signals["client_in_flight"]
        for sample in rows.samples
        if sample.source == "client" and window.settled_ns <= sample.at_ns < window.end_ns
    ]
    found = answer(
        rows.requests,
        together(
            in_flight=in_flight_mean(window),
            lateness=exact_quantiles(
                need_of(NEEDED_BY_LATENESS, [window]),
                lambda part: ({"late": send_lateness_s(each)} for each in started(part, [window])),
                (0.5, 0.99),
            ),
        ),
    )
    in_flight, (late_p50_s, late_p99_s) = found["in_flight"], found["lateness"]["late"]
    with capsys.disabled():
        print(
            f"\n{STREAMS} streams: in flight {fmean(samples) / STREAMS:.1%} of them in the samples, "
            f"{in_flight / STREAMS:.1%} by the rows; send lateness p50 "
            f"{late_p50_s * 1000:.1f} ms, p99 {late_p99_s * 1000:.1f} ms"
        )
    outcomes = Counter(request.outcome for request in rows.requests)
    assert outcomes.keys() <= {"ok", "client_cancel"}, done.stderr
    assert len(samples) > HOLD_S / 2
    assert fmean(samples) >= LOAD_REACHED_RATIO * STREAMS
    assert in_flight >= LOAD_REACHED_RATIO * STREAMS
