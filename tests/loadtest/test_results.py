"""Folding rows: idempotent, complete, and nothing issued goes missing, whatever state the folder is in."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from estimator.capacity import KvPool, predict
from estimator.spec import Lengths, Workload
from loadtest.records import Event, RequestIssued, RequestRecord, Sample
from loadtest.results import RunRows, finalise, load_results
from loadtest.run_folder import RunFolder, RunFolderError, replace_file
from loadtest.seal import DamagedSegmentError, seal, sealed_path
from loadtest.segments import SegmentWriter


def issued(seq: int, at_ns: int) -> RequestIssued:
    return RequestIssued(
        worker=0,
        seq=seq,
        endpoint="completions",
        planned_input_tokens=8,
        planned_output_tokens=9,
        intended_ns=at_ns,
    )


def ended(seq: int, at_ns: int, done_ns: int) -> RequestRecord:
    return RequestRecord(
        worker=0,
        seq=seq,
        outcome="ok",
        endpoint="completions",
        planned_input_tokens=8,
        planned_output_tokens=9,
        intended_ns=at_ns,
        done_ns=done_ns,
        retried=True,
    )


def seen(rows: RunRows) -> tuple[list[RequestRecord], object, object, object]:
    return list(rows.requests), rows.samples, rows.events, rows.damage


def content(folder: RunFolder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.root.rglob("*") if path.is_file()}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    run = RunFolder.create(tmp_path / "runs", "20261121T024000Z-tiny")
    rows = run.records_writer(0)
    for row in (issued(0, 10), issued(1, 20), ended(0, 10, 30)):
        rows.append(row)
    samples = run.samples_writer("engine")
    samples.append(Sample(at_ns=50, source="engine", target="t", signals={"running": 1.0}))
    events = run.events_writer()
    events.append(Event(at_ns=1, event="run_start", data={"stages": 1}))
    for writer in (rows, samples, events):
        writer.close()
    return run


def test_a_request_without_an_end_belonged_to_a_worker_that_died(folder: RunFolder) -> None:
    rows = finalise(folder)
    requests = list(rows.requests)
    assert [(r.seq, r.outcome, r.done_ns) for r in requests] == [(0, "ok", 30), (1, "client_lost", 50)]
    assert requests[1].planned_output_tokens == 9
    assert len(rows.requests) == 2


def test_folding_twice_gives_the_same_files_and_the_same_rows(folder: RunFolder) -> None:
    before = seen(load_results(folder))
    first = seen(finalise(folder))
    files = content(folder)
    assert seen(finalise(folder)) == first == before == seen(load_results(folder))
    assert content(folder) == files
    assert folder.text_segments() == []


def test_reading_changes_nothing(folder: RunFolder) -> None:
    before = content(folder)
    load_results(folder)
    assert content(folder) == before


def test_a_sealed_segment_opens_with_numpy_alone(folder: RunFolder) -> None:
    finalise(folder)
    (path,) = folder.sealed_segments()
    with np.load(path, allow_pickle=False) as columns:
        assert columns["intended_ns"].tolist() == [10]
        assert (columns["intended_ns"] + columns["done_ns"]).tolist() == [30]
    assert path.stat().st_mode & 0o077 == 0


def test_a_torn_tail_is_counted_and_harmless(folder: RunFolder) -> None:
    with (folder.root / "records/w00-000.jsonl").open("ab") as file:
        file.write(b'1234abcd {"kind":"requ')
    for _ in range(2):
        rows = finalise(folder)
        assert (rows.damage.torn_tails, rows.damage.bad_lines, len(rows.requests)) == (1, 0, 2)


def test_text_with_a_damaged_line_is_kept_beside_what_could_be_sealed(folder: RunFolder) -> None:
    text = folder.root / "records/w00-000.jsonl"
    lines = text.read_bytes().splitlines(keepends=True)
    text.write_bytes(lines[0] + lines[1].replace(b"chat", b"chit") + lines[2].replace(b'"ok"', b'"oh"'))
    for _ in range(2):
        rows = finalise(folder)
        assert [r.outcome for r in rows.requests] == ["client_lost", "client_lost"]
        assert (rows.damage.bad_lines, rows.damage.torn_tails) == (1, 0)
        assert folder.text_segments() == [text]


def test_any_flipped_bit_of_a_sealed_segment_is_found_before_a_row_is_read(folder: RunFolder) -> None:
    finalise(folder)
    (path,) = folder.sealed_segments()
    sound = path.read_bytes()
    for position in range(0, len(sound), 29):
        flipped = bytearray(sound)
        flipped[position] ^= 1 << (position % 8)
        path.write_bytes(flipped)
        with pytest.raises(DamagedSegmentError, match=r"is damaged .* move it away"):
            load_results(folder)
    path.write_bytes(sound)
    assert len(load_results(folder).requests) == 2


def test_a_cut_sealed_segment_is_found_and_its_text_would_still_be_there(folder: RunFolder) -> None:
    finalise(folder)
    (path,) = folder.sealed_segments()
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedSegmentError):
        load_results(folder)


def test_a_segment_whose_sealer_was_killed_before_it_removed_the_text_counts_once(folder: RunFolder) -> None:
    (text,) = folder.text_segments()
    written = text.read_bytes()
    first = seen(finalise(folder))
    text.write_bytes(written)
    assert seen(load_results(folder)) == first
    assert seen(finalise(folder)) == first
    assert folder.text_segments() == []


def test_what_a_killed_sealer_left_half_written_is_overwritten(folder: RunFolder) -> None:
    (folder.root / "records/.w00-000.tmp").write_bytes(b"half a file")
    assert len(finalise(folder).requests) == 2
    assert len(folder.sealed_segments()) == 1
    assert not (folder.root / "records/.w00-000.tmp").exists()


def test_a_segment_that_is_being_written_is_read_and_left_alone(folder: RunFolder) -> None:
    writer = folder.records_writer(1)
    writer.append(issued(5, 60))
    rows = finalise(folder)
    assert [(r.seq, r.outcome) for r in rows.requests] == [(0, "ok"), (1, "client_lost"), (5, "client_lost")]
    assert folder.text_segments() == [writer.path]
    writer.append(ended(5, 60, 70))
    writer.close()
    assert [r.outcome for r in finalise(folder).requests] == ["ok", "client_lost", "ok"]
    assert folder.text_segments() == []


def rotated(folder: RunFolder, count: int, started: list[Path]) -> None:
    """Pairs of rows whose issue and end lie in different segments, as often as not."""

    def seal_later(path: Path) -> int:
        started.append(path)
        return os.getpid()  # nobody's child: as if somebody else had reaped it

    writer = SegmentWriter(folder.root / "records", "w07", segment_bytes=1500, seal=seal_later)
    for seq in range(count):
        writer.append(issued(1000 + seq, 100 + seq))
        if seq:
            writer.append(ended(1000 + seq - 1, 100 + seq - 1, 5000 + seq))
    writer.close()


def test_a_request_may_be_issued_in_one_segment_and_end_in_the_next(folder: RunFolder) -> None:
    full: list[Path] = []
    rotated(folder, 50, full)
    assert len(full) > 10
    for text in full[::2]:  # some were sealed meanwhile, some were not
        assert seal(text) == sealed_path(text)
    for rows in (load_results(folder), finalise(folder), load_results(folder)):
        outcomes = [r.outcome for r in rows.requests if r.seq >= 1000]
        assert outcomes == ["ok"] * 49 + ["client_lost"]
        assert rows.damage.bad_lines == rows.damage.torn_tails == 0


def test_text_and_sealed_rows_are_read_together_whichever_begin_first(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "run")
    for worker, at_ns in ((0, 20), (1, 10)):
        writer = folder.records_writer(worker)
        for seq in range(2):
            writer.append(replace(ended(seq, at_ns + 15 * seq, 99), worker=worker))
        writer.close()
        if worker == 0:
            finalise(folder)
    parts = list(load_results(folder).requests.started_in_order(["outcome"], 0, 100))
    assert [at_ns for part in parts for at_ns in part["intended_ns"].tolist()] == [10, 20, 25, 35]


def test_a_writer_goes_on_after_what_a_run_already_holds(folder: RunFolder) -> None:
    finalise(folder)
    writer = folder.records_writer(0)
    assert writer.path.name == "w00-001.jsonl"
    writer.close()


@pytest.fixture
def locked(folder: RunFolder) -> Iterator[Path]:
    (text,) = folder.text_segments()
    fd = os.open(text, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    yield text
    os.close(fd)


def test_the_last_segment_of_a_living_writer_is_not_sealed(locked: Path) -> None:
    assert seal(locked, is_last=True) is None
    assert locked.exists()


def test_the_sealing_process_is_one_command(folder: RunFolder) -> None:
    (text,) = folder.text_segments()
    done = subprocess.run([sys.executable, "-m", "loadtest.seal", text], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert len(load_results(folder).requests) == 2
    assert folder.text_segments() == []


@pytest.mark.parametrize("run_id", ["", "../x", "a/b", ".hidden", "a\nb", "x" * 65, "a b"])
def test_a_run_id_that_could_leave_the_folder_is_refused(run_id: str, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="may hold only"):
        RunFolder.create(tmp_path, run_id)


def test_a_run_folder_is_never_taken_over(folder: RunFolder) -> None:
    with pytest.raises(RunFolderError, match="cannot create run folder"):
        RunFolder.create(folder.root.parent, folder.run_id)


def test_what_is_no_run_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="has no manifest"):
        RunFolder.open(tmp_path)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    replace_file(path, "old")
    (tmp_path / "locked").mkdir()
    with pytest.raises(RunFolderError):
        replace_file(tmp_path / "locked", "new")  # a folder cannot be replaced by a file
    replace_file(path, "new")
    assert path.read_text() == "new"


def test_a_prediction_is_read_back_equal(folder: RunFolder) -> None:
    pool = KvPool(blocks=512, reserved_blocks=1, block_size_tokens=32, bytes_per_block=None, source="metrics")
    workload = Workload(
        input_tokens=Lengths(kind="lognormal", median=100.0, sigma=0.5, min=8, max=900),
        output_tokens=Lengths(kind="uniform", min=1, max=64),
    )
    prediction = predict(pool, workload, max_model_len=2048, slots=None)
    assert folder.read_prediction() is None
    folder.write_prediction(prediction)
    assert folder.read_prediction() == prediction
