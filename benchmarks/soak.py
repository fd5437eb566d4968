"""python benchmarks/soak.py: does a soak itself grow? Memory of its processes over minutes of 200 streams.

Starts a twin with room for the streams, soaks it with the command a person types, and looks at the memory of
every process of ours each five seconds. The slope is Theil and Sen's over the last two thirds.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from loadtest.sequential import theil_sen

HERE = Path(__file__).resolve().parents[1]
LOOK_S = 5.0
FIRST_SHARE = 1 / 3
"""Of the time, not judged: caches fill, and the interpreter's own pools."""
GROWTH_MAX_MB_PER_H = 20.0
SCENARIO = """
name: soak-benchmark
seed: 5
input_tokens: {kind: constant, tokens: 128}
output_tokens: {kind: uniform, min: 64, max: 192}
settle_s: 10
spawn_rate_per_s: 50
stages: [{users: 1, hold_s: 60}]
"""


@contextmanager
def twin(streams: int) -> Iterator[str]:
    """Its base URL. Its steps take twice the time: this machine has to run server and load."""
    command = [sys.executable, "-m", "estimator.twin.server", "--port", "0", "--exit-with-stdin"]
    command += ["--max-num-seqs", str(streams + 56), "--num-gpu-blocks-override", str(streams * 16)]
    command += ["--time-scale", "2"]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=HERE)
    try:
        assert server.stdout is not None
        yield server.stdout.readline().split()[3]
    finally:
        server.terminate()
        server.wait()


def role(process: psutil.Process, soak: psutil.Process, processes: int) -> str | None:
    """What a process of the soak does; None for one that lives for a moment."""
    words = " ".join(process.cmdline())
    if "loadtest.collector" in words:
        return "collector"
    if process == soak:
        return "ullage soak"
    if "locust" not in words:
        return None
    is_load = processes == 1 or (
        process.parent() is not None and "locust" in " ".join(process.parent().cmdline())
    )
    return f"load process {process.pid}" if is_load else "master"


def look(soak: psutil.Process, processes: int) -> dict[str, int]:
    """Resident bytes by role."""
    seen: dict[str, int] = {}
    for process in (soak, *soak.children(recursive=True)):
        try:
            name = role(process, soak, processes)
            if name is not None:
                seen[name] = process.memory_info().rss
        except psutil.Error:
            continue
    return seen


def watched(command: list[str], processes: int) -> dict[str, list[tuple[float, int]]]:
    """(hour, bytes) by role until the soak ends."""
    points: dict[str, list[tuple[float, int]]] = {}
    running = subprocess.Popen(command, cwd=HERE)
    soak, started_s = psutil.Process(running.pid), time.monotonic()
    while running.poll() is None:
        for name, size in look(soak, processes).items():
            points.setdefault(name, []).append(((time.monotonic() - started_s) / 3600, size))
        time.sleep(LOOK_S)
    return points


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=12)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home, twin(options.streams) as host:
        scenario = Path(home) / "scenario.yaml"
        scenario.write_text(SCENARIO, encoding="utf-8")
        command = [sys.executable, "-m", "loadtest.cli", "soak", "--hours", str(options.minutes / 60)]
        command += ["--users", str(options.streams), "--host", host, "--scenario", str(scenario)]
        command += ["--runs-dir", home, "--processes", str(options.processes), "--no-audit"]
        points = watched(command, options.processes)
    print(f"{'process':<24}{'MB first':>10}{'MB last':>10}{'MB/h':>10}{'95% interval':>20}")
    for name, seen in points.items():
        steady = [point for point in seen if point[0] > FIRST_SHARE * seen[-1][0]]
        if len(steady) < 2:
            continue
        rise = theil_sen([hour for hour, _ in steady], [size / 1e6 for _, size in steady])
        first, last = steady[0][1] / 1e6, steady[-1][1] / 1e6
        interval = f"{rise.low:.1f} to {rise.high:.1f}"
        print(f"{name:<24}{first:>10.1f}{last:>10.1f}{rise.slope:>10.1f}{interval:>20}")
    print(f"wanted: at most {GROWTH_MAX_MB_PER_H:g} MB/h")


if __name__ == "__main__":
    main()
