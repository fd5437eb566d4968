"""How late the twin's live clock is with 500 streams of 20 tokens/s: `python benchmarks/twin_live.py`.

The server runs in a process of its own, bound to one core; the streams come from this process, which only
drains sockets. Prints the server's own ullage_twin_step_lateness_seconds and the share of its core it used.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOKENS_PER_S = 20
LOOK_EVERY_S = 0.001
PROFILE = """\
served_model_name: live
num_gpu_blocks: 65536
block_size: 16
max_num_seqs: 1024
max_num_batched_tokens: 8192
max_model_len: 4096
gpu_memory_utilization: 0.9
step_cost: {{fixed_s: {step_s}, compute_s_per_token: 0, weights_s: 0, context_s_per_token: 0, sequence_s: 0}}
"""
LATENESS = "ullage_twin_step_lateness_seconds"


def start(folder: Path, core: int) -> tuple[subprocess.Popen[str], int]:
    """The twin on one core, with steps of 1 / TOKENS_PER_S seconds."""
    (folder / "live.yaml").write_text(PROFILE.format(step_s=1 / TOKENS_PER_S), encoding="utf-8")
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n" + START, str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    os.sched_setaffinity(process.pid, {core})
    assert process.stdout is not None
    return process, int(process.stdout.readline().split()[3].rsplit(":", 1)[1])


START = """
import asyncio
from pathlib import Path
from estimator.twin.command import serve
from estimator.twin.options import ServerOptions
from estimator.twin.profile import read_profile
profile = read_profile("live", Path(sys.argv[1]))
asyncio.run(serve(profile, ServerOptions(), ("127.0.0.1", 0), exit_with_stdin=False))
"""


def open_streams(port: int, count: int, tokens: int) -> selectors.DefaultSelector:
    body = json.dumps({"prompt": [1] * 32, "max_tokens": tokens, "stream": True, "ignore_eos": True}).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: twin\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    waiting = selectors.DefaultSelector()
    for _ in range(count):
        connection = socket.create_connection(("127.0.0.1", port))
        connection.sendall(head.encode() + body)
        connection.setblocking(False)
        waiting.register(connection, selectors.EVENT_READ)
    return waiting


def drain(waiting: selectors.DefaultSelector, until_s: float) -> int:
    """Reads everything until then; the number of chunks that came.

    It looks every millisecond instead of sleeping on its sockets: to wake a sleeping reader costs the
    *sender* time, on a virtual machine more than the sending, and a client of 500 streams hardly sleeps.
    """
    chunks = 0
    while (left_s := until_s - time.monotonic()) > 0:
        time.sleep(min(left_s, LOOK_EVERY_S))
        for key, _ in waiting.select(0):
            connection = key.fileobj
            assert isinstance(connection, socket.socket)
            chunks += connection.recv(65536).count(b"data: ")
    return chunks


def page(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def buckets(text: str) -> dict[float, float]:
    rows = [line for line in text.splitlines() if line.startswith(LATENESS + "_bucket")]
    return {float(row.split('le="')[1].split('"')[0]): float(row.rsplit(" ", 1)[1]) for row in rows}


def quantile(before: dict[float, float], after: dict[float, float], share: float) -> float:
    """The upper bound of the bucket it is in."""
    fresh = {bound: after[bound] - before[bound] for bound in after}
    wanted = share * max(fresh.values())
    return min(bound for bound, count in fresh.items() if count >= wanted)


def mean_s(texts: list[str]) -> float:
    """Over the steps between the two pages."""
    rows = [
        dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith(LATENESS)) for text in texts
    ]
    sums, counts = (
        [
            float(next(value for name, value in row.items() if name.startswith(f"{LATENESS}_{end}")))
            for row in rows
        ]
        for end in ("sum", "count")
    )
    return (sums[1] - sums[0]) / (counts[1] - counts[0])


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--core", type=int, default=0)
    flags = parser.parse_args()
    os.sched_setaffinity(0, os.sched_getaffinity(0) - {flags.core})
    with tempfile.TemporaryDirectory() as folder:
        process, port = start(Path(folder), flags.core)
        try:
            waiting = open_streams(port, flags.streams, int((flags.seconds + 10) * TOKENS_PER_S))
            drain(waiting, time.monotonic() + 3.0)  # all of them decode by then
            texts, cpu_before_s, began_s = [page(port)], cpu_seconds(process.pid), time.monotonic()
            chunks = drain(waiting, began_s + flags.seconds)
            texts.append(page(port))
            cpu_s, took_s = cpu_seconds(process.pid), time.monotonic() - began_s
        finally:
            process.terminate()
            process.wait(timeout=10)
    before, after = (buckets(text) for text in texts)
    shares = {name: quantile(before, after, share) for name, share in {"p50": 0.5, "p99": 0.99}.items()}
    print(f"{flags.streams} streams, {chunks / took_s:.0f} chunks/s over {took_s:.1f} s")
    bounds = ", ".join(f"{name} <= {bound * 1e3:g} ms" for name, bound in shares.items())
    print(f"step lateness: mean {mean_s(texts) * 1e3:.1f} ms, {bounds}")
    print(f"CPU: {(cpu_s - cpu_before_s) / took_s:.0%} of one core")


if __name__ == "__main__":
    main()
