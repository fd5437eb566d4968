"""Folding rows: idempotent, complete, and nothing issued goes missing."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from estimator.capacity import KvPool, predict
from estimator.spec import Lengths, Workload
from loadtest.records import Event, RequestIssued, RequestRecord, Sample
from loadtest.results import finalise, load_results
from loadtest.run_folder import RunFolder, RunFolderError, replace_file


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
    assert [(r.seq, r.outcome, r.done_ns) for r in rows.requests] == [(0, "ok", 30), (1, "client_lost", 50)]
    assert rows.requests[1].planned_output_tokens == 9


def test_folding_twice_gives_the_same_file_and_the_same_rows(folder: RunFolder) -> None:
    first = finalise(folder)
    content = folder.results_path.read_bytes()
    assert finalise(folder) == first == load_results(folder)
    assert folder.results_path.read_bytes() == content


def test_the_database_is_made_again_when_it_is_missing(folder: RunFolder) -> None:
    first = finalise(folder)
    folder.results_path.unlink()
    assert load_results(folder) == first


def test_the_database_can_be_asked_in_sql(folder: RunFolder) -> None:
    finalise(folder)
    database = sqlite3.connect(folder.results_path)
    try:
        found = database.execute("SELECT outcome, count(*) FROM requests GROUP BY outcome").fetchall()
    finally:
        database.close()
    assert found == [("client_lost", 1), ("ok", 1)]


def test_a_torn_tail_is_counted_and_harmless(folder: RunFolder) -> None:
    with (folder.root / "records/w00-000.jsonl").open("ab") as file:
        file.write(b'1234abcd {"kind":"requ')
    rows = finalise(folder)
    assert (rows.damage.torn_tails, len(rows.requests)) == (1, 2)


def test_a_broken_database_says_what_to_do(folder: RunFolder) -> None:
    folder.results_path.write_bytes(b"not a database, but long enough to be read as one" * 20)
    with pytest.raises(RunFolderError, match="delete it and rerun"):
        load_results(folder)


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
