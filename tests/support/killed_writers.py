"""python killed_writers.py FOLDER TRIALS SEED: kills writers at random, prints what each acknowledged.

One line of JSON a trial: how many rows were acknowledged over a pipe before the kill. Trial k writes the
run folder FOLDER/k: for each request first its issue, then its end, in segments so small that kills meet
rotation and sealing too.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from loadtest.records import RequestIssued, RequestRecord, Row
from loadtest.seal import seal
from loadtest.segments import SegmentWriter

SEGMENT_BYTES = 40_000
ACKNOWLEDGED_MAX = 300
DELAY_S_MAX = 0.002
ROWS_MAX = 1_000_000


def row_of(position: int) -> Row:
    """Row number `position` of every trial: even ones are issues, odd ones the ends of these."""
    seq, is_end = divmod(position, 2)
    at_ns = 10**15 + seq * 10**6
    if not is_end:
        return RequestIssued(
            worker=0,
            seq=seq,
            endpoint="chat",
            planned_input_tokens=7,
            planned_output_tokens=9,
            intended_ns=at_ns,
        )
    failed = seq % 10 == 9  # rows of both forms, printed and plain
    return RequestRecord(
        worker=0,
        seq=seq,
        outcome="stream_error" if failed else "ok",
        endpoint="chat",
        planned_input_tokens=7,
        planned_output_tokens=9,
        intended_ns=at_ns,
        sent_ns=at_ns + 1000,
        done_ns=at_ns + 5_000_000,
        output_tokens=9,
        gap_p50_s=0.02,
        error="x" * (seq % 300) if failed else None,
    )


def write_until_killed(folder: Path, acknowledged: int, *, seals: bool) -> None:
    def seal_here(path: Path) -> int:
        # what the sealing process does, in this one: so the kill meets it half-way
        if seals:
            seal(path)
        return os.getpid()

    writer = SegmentWriter(folder / "records", "w00", segment_bytes=SEGMENT_BYTES, seal=seal_here)
    for position in range(ROWS_MAX):
        writer.append(row_of(position))
        os.write(acknowledged, b".")


def trial(folder: Path, draw: random.Random) -> int:
    """Rows acknowledged by a writer that was killed a moment after a random one of them."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        write_until_killed(folder, writer, seals=draw.random() < 0.5)
        os._exit(0)
    os.close(writer)
    count, wanted = 0, draw.randrange(1, ACKNOWLEDGED_MAX)
    while count < wanted:
        count += len(os.read(reader, 65_536))
    time.sleep(draw.uniform(0, DELAY_S_MAX))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while piece := os.read(reader, 65_536):
        count += len(piece)
    os.close(reader)
    return count


def main(folder: str, trials: str, seed: str) -> None:
    draw = random.Random(int(seed))
    for number in range(int(trials)):
        print(json.dumps(trial(Path(folder) / str(number), draw)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
