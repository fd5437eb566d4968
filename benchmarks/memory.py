"""Does a load process grow with its requests? Everything it keeps of each, for as long as one asks.

python benchmarks/memory.py [--seconds 240]

Requests follow each other without a pause: rows appended and rotated, segments sealed by processes of their
own, live counts, gaps counted and written once a second's worth. No request is sent.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).parents[1]
sys.path[:0] = [str(REPOSITORY)]

from rows import MIB, RATE_PER_S, moved, rss_bytes, shape  # noqa: E402  (runs without an installation)

from loadtest.live_counts import LiveCounts  # noqa: E402
from loadtest.run_folder import RunFolder  # noqa: E402
from loadtest.scenario import Limits  # noqa: E402
from loadtest.stream_counts import Tally  # noqa: E402

GAPS: Final = 64
"""Of each answer."""
SETTLED: Final = 20_000
"""Requests after which every code path and every histogram slot has been met."""
TARGET: Final = 10_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=240.0)
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory(prefix="memory-") as root:
        folder = RunFolder.create(Path(root), "run")
        keep(folder, seconds)
        sealed = len(folder.sealed_segments())
        print(f"{sealed} segments sealed meanwhile, {len(folder.text_segments())} not yet")


def keep(folder: RunFolder, seconds: float) -> None:
    """Prints resident memory each time the number of requests has doubled, and at the end."""
    rows, streams = folder.records_writer(0), folder.streams_writer(0)
    counts, tally = LiveCounts(Limits(ttft_s=2.0, tpot_s=0.05)), Tally(0)
    kinds = [shape(random.Random(seed)) for seed in range(1000)]
    draw = random.Random(7)
    gaps_ns = [sorted(int(draw.lognormvariate(-4.0, 0.3) * 1e9) for _ in range(GAPS)) for _ in range(100)]
    end_s, seq, settled, shown = time.monotonic() + seconds, 0, 0, SETTLED
    while seq <= SETTLED or time.monotonic() < end_s:
        issued, ended = moved(kinds[seq % 1000], seq)
        rows.append(issued)
        rows.append(ended)
        gaps = gaps_ns[seq % 100]
        counts.add(ended, gaps)
        tally.add(issued.intended_ns, gaps, [ended.first_token_ns or 0])
        seq += 1
        if seq % RATE_PER_S == 0:
            for row in tally.taken():
                streams.append(row)
        if seq == SETTLED:
            settled = rss_bytes()
        if seq == shown:
            print(f"{seq:>10,} requests: {rss_bytes() / MIB:.1f} MiB", flush=True)
            shown *= 2
    grown = rss_bytes() - settled
    rows.close()
    streams.close()
    print(
        f"{seq:>10,} requests: {grown / MIB:+.2f} MiB since the {SETTLED:,}th, "
        f"{grown / (seq - SETTLED) * TARGET / MIB:+.1f} MiB for {TARGET:,}; "
        f"{counts.outcomes.total():,} counted"
    )


if __name__ == "__main__":
    main()
