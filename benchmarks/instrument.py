"""How true and how cheap the load client is, beside a floor in C and two clients people use: one table.

`python benchmarks/instrument.py [--vllm-python PATH]`. A mock server with true times
(instrument_server.c: first token after 100 ms, then one each 20 ms, 200 a stream) has core 0, the client
core 1. CPU is what the kernel charges the client's processes between two looks, divided by the chunks sent
meanwhile; errors are the client's figures less the server's own. Needs Linux, two cores and a C compiler;
root makes both sides deaf to other work on the machine. What its hypervisor takes of the client's core is a
column; so that it takes little, idle cores are kept from halting. Ratios are to be trusted, microseconds
belong to this machine.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from instrument_cell import (
    HERE,
    PORT,
    SETTLE_S,
    TOKENS,
    WINDOW_S,
    Cell,
    Failure,
    Figures,
    Server,
    awake,
    compiled,
    measured,
)

SCENARIO: Final = f"""
name: instrument
input_tokens: {{kind: constant, tokens: 32}}
output_tokens: {{kind: constant, tokens: {TOKENS}}}
settle_s: 1
stages: [{{users: 1, hold_s: 2}}]
"""
TINY_MODEL: Final = HERE.parent / "tests/vllm/tiny_model.py"
VLLM_BENCH: Final = """
import argparse
from vllm.benchmarks.serve import add_cli_args, main
parser = argparse.ArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""


def commands(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Each client as a function of its cell; only those that this machine can run."""
    scenario = folder / "scenario.yaml"
    scenario.write_text(SCENARIO)
    host = f"http://127.0.0.1:{PORT}"
    floor = compiled("instrument_reader", folder)

    def locust(file: str, cell: Cell, *more: str) -> list[str]:
        run_s = cell.up_s + SETTLE_S + WINDOW_S + 1
        rate = cell.streams / max(cell.up_s, 0.5)
        words = ["-f", HERE / file, "--host", host, "--headless", "-u", cell.streams, "-r", rate]
        words += ["-t", f"{round(run_s)}s", "--only-summary", *more]
        return [sys.executable, "-m", "locust", *map(str, words)]

    known: dict[str, Any] = {
        "Ullage": lambda cell: locust(
            *("instrument_ullage.py", cell, "--scenario", str(scenario), "--runs-dir", str(folder / "runs")),
            "--no-audit",  # its one request would be counted, and its second is not the load's
        ),
        "naive FastHttpUser": lambda cell: locust("instrument_naive.py", cell),
        "C reader": lambda cell: [str(floor), str(PORT), str(cell.streams), str(SETTLE_S + WINDOW_S + 1)],
    }
    if args.vllm_python:
        args.vllm_tokenizer = args.vllm_tokenizer or tiny_tokenizer(args.vllm_python, folder)
        known["vllm bench serve"] = lambda cell: vllm_command(args, cell, folder, host)
    return known


def tiny_tokenizer(vllm_python: str, folder: Path) -> str:
    """A folder with one, made as the tests against a real vLLM make theirs."""
    made = folder / "tokenizer"
    try:
        subprocess.run([vllm_python, TINY_MODEL, "tiny", made], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"no tokenizer could be made ({error}): give one with --vllm-tokenizer") from error
    return str(made)


def vllm_command(args: argparse.Namespace, cell: Cell, folder: Path, host: str) -> list[str]:
    words = [args.vllm_python, "-c", VLLM_BENCH, "--base-url", host]
    words += ["--backend", "openai-chat", "--endpoint", "/v1/chat/completions", "--model", "tiny"]
    words += ["--tokenizer", args.vllm_tokenizer, "--dataset-name", "random", "--random-input-len", "32"]
    words += ["--random-output-len", TOKENS, "--num-prompts", 3 * cell.streams]
    words += ["--max-concurrency", cell.streams, "--ignore-eos", "--disable-tqdm", "--save-result"]
    words += ["--result-dir", folder, "--result-filename", "seen.json", "--percentile-metrics", "ttft,itl"]
    return [str(word) for word in words]


def cells(known: Mapping[str, Any], *, quick: bool) -> list[Cell]:
    plan = [
        ("C reader", 500, 0.0),
        ("Ullage", 500, 1.0),
        ("Ullage", 500, 0.0),
        ("C reader", 1000, 0.0),
        ("Ullage", 1000, 2.0),
        ("Ullage", 1000, 0.0),
        ("C reader", 2000, 0.0),
        ("Ullage", 2000, 4.0),
        ("Ullage", 2250, 4.0),
        ("Ullage", 200, 1.0),
        ("naive FastHttpUser", 200, 1.0),
        ("naive FastHttpUser", 500, 2.0),
        ("vllm bench serve", 200, 0.0),
        ("vllm bench serve", 500, 0.0),
    ]
    return [
        Cell(client=client, streams=streams, up_s=up_s)
        for client, streams, up_s in (plan[:3] if quick else plan)
        if client in known
    ]


def failed_row(failure: Failure) -> str:
    shown = f"{failure.cell.client}, {failure.cell.streams} streams", f"failed: {failure.reason}"
    return f"| {' | '.join(' '.join(text.split()).replace('|', '/') for text in shown)} |"


def by_cell(figures: Sequence[Figures]) -> dict[Cell, list[Figures]]:
    found: dict[Cell, list[Figures]] = {}
    for one in figures:
        found.setdefault(one.cell, []).append(one)
    return found


def median_of(same: Sequence[Figures]) -> Figures:
    """The run whose CPU a chunk is in the middle: its figures belong together."""
    return sorted(same, key=lambda one: one.cpu_us)[(len(same) - 1) // 2]


def row(one: Figures, floor_us: Mapping[int, float]) -> str:
    floor = floor_us.get(one.cell.streams)
    start = "together" if one.cell.up_s == 0 else f"over {one.cell.up_s:g} s"
    shown = [
        f"{one.cell.client}, {one.cell.streams} streams, {start}",
        f"{one.sent_per_s:,.0f}",
        f"{one.cores:.2f}",
        f"{one.cpu_us:.1f}",
        "" if floor is None else f"{one.cpu_us / floor:.2f}",
        "" if one.ttft_error_ms is None else "{:+.2f} / {:+.2f}".format(*one.ttft_error_ms),
        "" if one.itl_p99_ms is None else "{:.2f} ({:.2f})".format(*one.itl_p99_ms),
        "" if one.lateness_p99_ms is None else f"{one.lateness_p99_ms:.2f}",
        f"{one.rss_mb:.0f}",
        f"{one.start_s:.1f}",
        "" if one.stolen_ms is None else f"{one.stolen_ms:.0f}",
        "yes" if one.keeps_up else "no",
    ]
    return f"| {' | '.join(shown)} |"


COLUMNS: Final = (
    "client",
    "chunks/s sent",
    "cores",
    "CPU us/chunk",
    "x C reader",
    "TTFT error ms, mean / p99",
    "ITL p99 ms (true)",
    "send lateness p99 ms",
    "RSS MB",
    "start s",
    "stolen ms",
    "keeps up",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=1, help="rounds over the cells; the table has medians")
    parser.add_argument("--quick", action="store_true", help="the first three rows alone")
    parser.add_argument("--only", default="", help="a regular expression on 'client streams'")
    parser.add_argument("--may-halt", action="store_true", help="let idle cores halt, as any machine's do")
    parser.add_argument(
        "--vllm-python", default="", help="a Python that has vLLM, to run its bench as a peer"
    )
    parser.add_argument(
        "--vllm-tokenizer", default="", help="a folder with a tokenizer for it; default: one is made"
    )
    args = parser.parse_args()
    figures: list[Figures] = []
    failures: dict[Cell, Failure] = {}
    with contextlib.ExitStack() as kept:
        name = kept.enter_context(tempfile.TemporaryDirectory())
        folder = Path(name)
        if not args.may_halt:
            kept.enter_context(awake())
        server = Server(folder)
        try:
            known = commands(folder, args)
            for cell in cells(known, quick=args.quick) * args.repeats:
                if not re.search(args.only, f"{cell.client} {cell.streams}"):
                    continue
                found = measured(server, cell, known[cell.client](cell), folder)
                if isinstance(found, Failure):
                    failures[cell] = found
                    continue
                figures.append(found)
                print(found, file=sys.stderr)
        finally:
            server.stop()
    middles = [median_of(same) for same in by_cell(figures).values()]
    floor_us = {one.cell.streams: one.cpu_us for one in middles if one.cell.client == "C reader"}
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for one in middles:
        print(row(one, floor_us))
    for failure in failures.values():
        print(failed_row(failure))
    print(f"\nLoad of the machine besides: {os.getloadavg()[0]:.1f} at the end.")


if __name__ == "__main__":
    main()
