"""Writers killed at random moments lose no row they acknowledged; writers under load rotate and lose none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import killed_writers
from kept_rows import check_kept

from loadtest.results import finalise
from loadtest.run_folder import RunFolder
from loadtest.segments import SegmentWriter

TRIALS = 50


def test_fifty_killed_writers_lose_no_row_they_acknowledged(tmp_path: Path) -> None:
    command = [sys.executable, killed_writers.__file__, str(tmp_path), str(TRIALS), "20261121"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    acknowledged = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(acknowledged) == TRIALS
    assert min(acknowledged) >= 1
    assert sum(acknowledged) > 100 * TRIALS  # on average half of what a trial may reach
    lost = [check_kept(tmp_path / str(trial), count) for trial, count in enumerate(acknowledged)]
    assert lost == [0] * TRIALS
    texts = sum(len(list((tmp_path / str(trial)).rglob("*.jsonl"))) for trial in range(TRIALS))
    assert texts == 0


def test_a_writer_under_load_rotates_and_its_sealers_work_beside_it(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path / "records", "w00", segment_bytes=200_000)
    count = 3000
    for position in range(count):
        writer.append(killed_writers.row_of(position))
        if position % 500 == 0:
            writer.sync()
    writer.close()
    finalise(RunFolder(tmp_path))
    assert check_kept(tmp_path, count) == 0
    assert len(RunFolder(tmp_path).sealed_segments()) > 5
    assert RunFolder(tmp_path).text_segments() == []
