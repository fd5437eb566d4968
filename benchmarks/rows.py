"""How fast rows are written, how small they become, and how long a report of millions takes.

python benchmarks/rows.py [--rows 500000]     writes, kills -9, recovers, reports
python benchmarks/rows.py --rows 10000000     the same at full size: minutes, and 0.5 GB of disk
python benchmarks/rows.py --fold 10000000     so many requests sealed straight from columns, then reported
python benchmarks/rows.py --kills 1000        kills writers at random moments and counts what was lost

CPU is that of one process on one core; peaks are resident memory of a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

REPOSITORY: Final = Path(__file__).parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests/support")]

from loadtest.columns import Columns, columns_of, packed  # noqa: E402  (runs without an installation)
from loadtest.records import Event, RequestIssued, RequestRecord, Sample  # noqa: E402
from loadtest.run_folder import Manifest, RunFolder  # noqa: E402
from loadtest.seal import about_rows  # noqa: E402
from loadtest.segment_text import SegmentRows  # noqa: E402

MIB: Final = 2**20
RATE_PER_S: Final = 1000
"""Requests a second of the made-up run: they decide its length, not the speed of the benchmark."""
STAGES: Final = 8
SEGMENT_ROWS: Final = 65_000
"""About what 64 MiB of text hold."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--fold", type=int, metavar="REQUESTS")
    parser.add_argument("--kills", type=int, metavar="TRIALS")
    parser.add_argument("--in", dest="where", help=argparse.SUPPRESS)
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.part:
        PARTS[asked.part](Path(asked.where), asked.rows)
        return
    with tempfile.TemporaryDirectory(dir=asked.where, prefix="rows-") as root:
        if asked.kills:
            kill(Path(root), asked.kills)
        elif asked.fold:
            show("columns", child("columns", Path(root), asked.fold))
            report(Path(root), asked.fold)
        else:
            write_and_kill(Path(root), asked.rows)


def write_and_kill(root: Path, rows: int) -> None:
    run_folder(root, requests=rows // 2)
    show("write", child("write", root, rows))
    show("recover", child("recover", root, rows))
    report(root, rows)


def report(root: Path, rows: int) -> None:
    told = child("report", root, rows)
    sealed = sum(path.stat().st_size for path in RunFolder(root / "run").sealed_segments())
    show("report", {**told, "sealed_bytes_per_request": sealed / told["requests"]})


def show(name: str, told: dict[str, Any]) -> None:
    figures = ", ".join(
        f"{key} {value:,.4g}" if value < 1000 else f"{key} {value:,.0f}" for key, value in told.items()
    )
    print(f"{name}: {figures}", flush=True)


def child(part: str, root: Path, rows: int) -> dict[str, Any]:
    """Runs one part in a process of its own and returns what it told; the writer is killed, not ended."""
    command = [sys.executable, __file__, "--part", part, "--in", str(root), "--rows", str(rows)]
    environment = dict(os.environ, PYTHONPATH=str(REPOSITORY))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        told: dict[str, Any] = json.loads(process.stdout.readline() or "{}")
        if part == "write":
            process.send_signal(signal.SIGKILL)
    return told


def tell(told: dict[str, Any]) -> None:
    print(json.dumps(told), flush=True)


def rss_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


def figures(rows: int) -> dict[str, Any]:
    """CPU and peak memory of this process until now."""
    cpu_s = time.process_time()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"rows": rows, "cpu_s": cpu_s, "us_per_row": cpu_s / rows * 1e6, "peak_rss_mib": peak}


def part_write(root: Path, rows: int) -> None:
    """Pairs of rows as a load worker writes them; says so and waits to be killed."""
    writer = RunFolder(root / "run").records_writer(0)
    kinds = [shape(random.Random(seed)) for seed in range(1000)]  # varied, and made before the clock starts
    start_bytes, began_s, cpu_s = rss_bytes(), time.perf_counter(), time.process_time()
    written, slowest_s = 0, 0.0
    for seq in range(rows // 2):
        issued, ended = moved(kinds[seq % 1000], seq)
        for row in (issued, ended):
            before_s = time.perf_counter()
            writer.append(row)
            slowest_s = max(slowest_s, time.perf_counter() - before_s)
        written += 2
    took_s = time.perf_counter() - began_s
    tell(
        {
            "rows": written,
            "rows_per_s": written / took_s,
            "cpu_us_per_row": (time.process_time() - cpu_s) / written * 1e6,
            "slowest_append_ms": slowest_s * 1000,
            "rss_growth_mib": (rss_bytes() - start_bytes) / MIB,
        }
    )
    signal.pause()


def part_recover(root: Path, rows: int) -> None:
    from loadtest.results import finalise

    left = sum(path.stat().st_size for path in RunFolder(root / "run").text_segments())
    found = finalise(RunFolder(root / "run"))
    tell({**figures(rows), "text_left_mib": left / MIB, "requests": len(found.requests)})


def part_report(root: Path, rows: int) -> None:
    from loadtest.reporter.report import write_report

    verdict = write_report(RunFolder(root / "run"))
    tell({**figures(rows), "requests": verdict.observation.requests, "n_safe": verdict.n_safe})


def part_columns(root: Path, requests: int) -> None:
    folder = run_folder(root, requests=requests)
    total = 0
    for first in range(0, requests, SEGMENT_ROWS):
        rows = SegmentRows(ended=block(first, min(SEGMENT_ROWS, requests - first)))
        content = packed(rows.ended, about_rows(rows))
        name = f"w{first // SEGMENT_ROWS % 4:02d}-{first // SEGMENT_ROWS:03d}.{zlib.crc32(content):08x}.npz"
        (folder.root / "records" / name).write_bytes(content)
        total += rows.ended.rows
    tell(figures(total))


PARTS: Final = {"write": part_write, "recover": part_recover, "report": part_report, "columns": part_columns}


def run_folder(root: Path, requests: int) -> RunFolder:
    """A run of STAGES stages, a look a second, whose requests come later."""
    folder = RunFolder.create(root, "run")
    length_s = max(requests / RATE_PER_S, STAGES * 20.0)
    scenario = {
        "name": "rows",
        "seed": 7,
        "input_tokens": {"kind": "uniform", "min": 16, "max": 3000},
        "output_tokens": {"kind": "constant", "tokens": 256},
        "stages": [{"users": 1, "hold_s": 60}],
        "limits": {"ttft_s": 2.0, "tpot_s": 0.05},
    }
    folder.write_manifest(manifest(scenario))
    events, samples = folder.events_writer(), folder.samples_writer("engine")
    for stage in range(STAGES):
        data = {"index": stage, "users": 1000 * (stage + 1), "settle_s": 5.0, "hold_s": length_s / STAGES}
        events.append(Event(at_ns=int(stage * length_s / STAGES * 1e9), event="stage", data=data))
    events.append(Event(at_ns=int(length_s * 1e9), event="run_end", data={"reason": "plan complete"}))
    for second in range(int(length_s)):
        signals = {"running": 4000.0, "waiting": 0.0, "kv_usage_ratio": 0.7, "preemptions_total": 0.0}
        samples.append(Sample(at_ns=second * 10**9, source="engine", target="t", signals=signals))
    events.close()
    samples.close()
    return folder


def manifest(scenario: dict[str, Any]) -> Manifest:
    return Manifest(
        run_id="run",
        created_utc="2026-11-21T00:00:00+00:00",
        wall_ns=0,
        mono_ns=0,
        versions={"ullage": "0"},
        host="http://127.0.0.1:8000",
        engine="vllm",
        model="rows",
        scenario=scenario,
        stages=(),
        server={},
    )


def shape(draw: random.Random) -> RequestRecord:
    """A request of realistic times that began at 0."""
    first_ns = int(draw.lognormvariate(-2.0, 0.5) * 1e9)
    gaps_ns = sorted(int(draw.lognormvariate(-4.0, 0.3) * 1e9) for _ in range(3))
    last_ns = first_ns + int(draw.gauss(5.0, 0.4) * 1e9)
    return RequestRecord(
        worker=0,
        seq=0,
        outcome="ok" if draw.random() < 0.999 else "stream_error",
        endpoint="completions",
        planned_input_tokens=draw.randrange(16, 3000),
        planned_output_tokens=256,
        intended_ns=0,
        sent_ns=draw.randrange(50_000, 400_000),
        headers_ns=first_ns // 2,
        first_token_ns=first_ns,
        last_token_ns=last_ns,
        done_ns=last_ns + draw.randrange(10_000, 90_000),
        input_tokens=draw.randrange(16, 3000),
        output_tokens=256,
        chunks=draw.randrange(200, 257),
        coalesced_reads=draw.randrange(5),
        gap_p50_s=gaps_ns[0] / 1e9,
        gap_p99_s=gaps_ns[1] / 1e9,
        gap_max_s=gaps_ns[2] / 1e9,
        finish_reason="length",
        http_status=200,
        reused_connection=True,
    )


TIMES: Final = ("intended_ns", "sent_ns", "headers_ns", "first_token_ns", "last_token_ns", "done_ns")


def moved(kind: RequestRecord, seq: int) -> tuple[RequestIssued, RequestRecord]:
    at_ns = seq * 10**9 // RATE_PER_S
    later: dict[str, Any] = {name: getattr(kind, name) + at_ns for name in TIMES}
    issued = RequestIssued(
        worker=0,
        seq=seq,
        endpoint=kind.endpoint,
        planned_input_tokens=kind.planned_input_tokens,
        planned_output_tokens=kind.planned_output_tokens,
        intended_ns=at_ns,
    )
    return issued, replace(kind, seq=seq, **later)


def block(first: int, count: int) -> Columns:
    """The columns of so many requests, each with times of its own."""
    draw = np.random.default_rng(first)
    kinds = columns_of([shape(random.Random(seed)) for seed in range(1000)])
    rows = kinds.take(draw.integers(0, 1000, count))
    arrays = dict(rows.arrays)
    arrays["seq"] = np.arange(first, first + count)
    at_ns = arrays["seq"] * 10**9 // RATE_PER_S
    for name in TIMES:
        arrays[name] = arrays[name] + at_ns
    for name in ("first_token_ns", "last_token_ns", "done_ns"):
        arrays[name] = arrays[name] + draw.integers(0, 10**8, count)
    arrays["last_token_ns"] = np.maximum(arrays["last_token_ns"], arrays["first_token_ns"])
    arrays["done_ns"] = np.maximum(arrays["done_ns"], arrays["last_token_ns"])
    return Columns(count, arrays, rows.words).in_order()


def acknowledged(root: Path, trials: int) -> Iterator[int]:
    script = REPOSITORY / "tests/support/killed_writers.py"
    command = [sys.executable, str(script), str(root), str(trials), str(random.randrange(2**32))]
    environment = dict(os.environ, PYTHONPATH=str(REPOSITORY))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as writers:
        assert writers.stdout is not None
        for line in writers.stdout:
            yield json.loads(line)


def kill(root: Path, trials: int) -> None:
    from kept_rows import check_kept

    counts = list(acknowledged(root, trials))
    lost = sum(check_kept(root / str(trial), count) for trial, count in enumerate(counts))
    show("kill -9", {"trials": len(counts), "acknowledged": sum(counts), "lost": lost})


if __name__ == "__main__":
    main()
