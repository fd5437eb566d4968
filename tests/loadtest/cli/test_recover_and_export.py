"""What `ullage recover` and `ullage export` say and leave, on each state a folder can be in."""

from __future__ import annotations

import csv
import dataclasses
import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from fake_run import FakeRun, FakeStage

from loadtest.cli import main
from loadtest.columns import KINDS, NAMES
from loadtest.records import RequestIssued
from loadtest.results import load_results
from loadtest.row_file import RowWriter
from loadtest.run_folder import RunFolder

RUN = FakeRun(
    stages=(FakeStage(users=4, failing="http_5xx", failing_share=0.02), FakeStage(users=8)),
    error="=cmd()\ud800",
)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run whose every process was killed: rows as text, a request in flight, the manifest says running."""
    run = RunFolder.create(tmp_path / "runs", "20261121T024000Z-tiny")
    run.write_manifest(dataclasses.replace(RUN.manifest, state="running"))
    rows = RUN.rows()
    records, samples, events = run.records_writer(0), run.samples_writer("engine"), run.events_writer()
    for request in rows.requests:
        records.append(request)
    records.append(
        RequestIssued(
            worker=0,
            seq=10**6,
            endpoint="completions",
            planned_input_tokens=1,
            planned_output_tokens=1,
            intended_ns=119 * 10**9,
        )
    )
    for sample in rows.samples:
        samples.append(sample)
    for event in rows.events:
        events.append(event)
    for writer in (records, samples, events):
        writer.close()
    return run


def ullage(*words: str | Path) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def text_of(folder: RunFolder) -> Path:
    (path,) = folder.text_segments()
    return path


def test_recover_seals_a_dead_run_and_says_what_was_lost(folder: RunFolder) -> None:
    with text_of(folder).open("ab") as file:
        file.write(b"0badcafe {half a r")
    said = ullage("recover", folder.root)
    again = ullage("recover", folder.root)
    assert (said.exit_code, said.output) == (again.exit_code, again.output) == (0, said.output)
    count = len(RUN.rows().requests) + 1
    assert said.output.startswith(f"{count:,} requests, 240 samples and 4 events in 1 sealed segments\n")
    assert "in flight when their worker ended (client_lost): 1\n" in said.output
    assert "half-written last lines (never acknowledged): 1\n" in said.output
    assert "damaged lines (rows lost): 0\n" in said.output
    assert folder.read_manifest().state == "interrupted"
    assert folder.text_segments() == []


def test_recover_of_damaged_lines_ends_with_1(folder: RunFolder) -> None:
    path = text_of(folder)
    content = bytearray(path.read_bytes())
    content[20] ^= 1
    path.write_bytes(content)
    said = ullage("recover", folder.root)
    assert said.exit_code == 1
    assert "damaged lines (rows lost): 1\n" in said.output
    assert folder.text_segments() == [path]


def test_recover_of_a_run_that_lives_is_refused(folder: RunFolder) -> None:
    writer = RowWriter(folder.root / "records/w01-000.jsonl")
    said = ullage("recover", folder.root)
    writer.close()
    assert said.exit_code == 2
    assert "w01-000.jsonl is still being written: end the run's processes first" in said.output
    assert folder.read_manifest().state == "running"


def test_recover_of_a_damaged_sealed_segment_names_it(folder: RunFolder) -> None:
    ullage("recover", folder.root)
    (path,) = folder.sealed_segments()
    path.write_bytes(path.read_bytes()[:-9])
    said = ullage("recover", folder.root)
    assert said.exit_code == 2
    assert f"{path} is damaged" in said.output


def test_recover_of_an_empty_or_missing_folder(tmp_path: Path) -> None:
    assert ullage("recover", tmp_path).exit_code == 2
    run = RunFolder.create(tmp_path, "run")
    run.write_manifest(RUN.manifest)
    said = ullage("recover", run.root)
    assert said.exit_code == 0
    assert said.output.startswith("0 requests, 0 samples and 0 events in 0 sealed segments\n")


def test_the_report_of_a_recovered_run_is_that_of_its_text(folder: RunFolder) -> None:
    before = list(load_results(folder).requests)
    ullage("recover", folder.root)
    assert list(load_results(folder).requests) == before


def test_csv_holds_every_request_and_no_formula(folder: RunFolder, tmp_path: Path) -> None:
    said = ullage("export", folder.root, "--csv", tmp_path / "rows.csv")
    assert said.exit_code == 0
    with (tmp_path / "rows.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    rows = list(load_results(folder).requests)
    assert tuple(lines[0]) == NAMES
    assert [int(line["done_ns"]) for line in lines] == [row.done_ns for row in rows]
    assert {line["error"] for line in lines} >= {"", "'=cmd()\\udc00".replace("dc00", "d800")}
    assert (tmp_path / "rows.csv").stat().st_mode & 0o077 == 0
    assert text_of(folder).exists()  # an export changes nothing


def test_sqlite_can_be_asked_in_sql(folder: RunFolder, tmp_path: Path) -> None:
    assert ullage("export", folder.root, "--sqlite", tmp_path / "rows.sqlite").exit_code == 0
    database = sqlite3.connect(tmp_path / "rows.sqlite")
    try:
        found = dict(database.execute("SELECT outcome, count(*) FROM requests GROUP BY outcome"))
    finally:
        database.close()
    assert sum(found.values()) == len(load_results(folder).requests)
    assert found["client_lost"] == 1


def test_parquet_names_its_extra_where_pyarrow_is_missing(folder: RunFolder, tmp_path: Path) -> None:
    without = "import sys; sys.modules['pyarrow'] = None; from loadtest.cli import main; main()"
    target = tmp_path / "rows.parquet"
    said = subprocess.run(
        [sys.executable, "-c", without, "export", folder.root, "--parquet", target],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert said.returncode == 2
    assert "--parquet needs pyarrow: pip install 'ullage[parquet]'" in said.stderr
    assert not target.exists()


@pytest.mark.parametrize("is_sealed", [False, True])
def test_parquet_holds_every_field_of_every_row_with_its_type(
    folder: RunFolder, tmp_path: Path, is_sealed: bool
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="the extra ullage[parquet] is not installed")
    if is_sealed:
        ullage("recover", folder.root)
    assert ullage("export", folder.root, "--parquet", tmp_path / "rows.parquet").exit_code == 0
    table = parquet.read_table(tmp_path / "rows.parquet")
    types = {"int": "int64", "float": "double", "flag": "bool", "word": "string"}
    assert {field.name: str(field.type) for field in table.schema} == {
        name: types[kind] for name, kind in KINDS.items()
    }
    expected = [dataclasses.asdict(row) for row in load_results(folder).requests]
    for row in expected:  # a lone surrogate is no character in UTF-8
        row["error"] = row["error"] and row["error"].replace("\ud800", "\\ud800")
    assert table.to_pylist() == expected
    assert (tmp_path / "rows.parquet").stat().st_mode & 0o077 == 0


def test_parquet_and_csv_say_the_same_and_lack_the_same(folder: RunFolder, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="the extra ullage[parquet] is not installed")
    files = tmp_path / "rows.parquet", tmp_path / "rows.csv"
    ullage("export", folder.root, "--parquet", files[0], "--csv", files[1])
    table = parquet.read_table(files[0])
    with files[1].open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    for name in NAMES:
        column = table.column(name)
        texts = ["" if value is None else str(value) for value in column.to_pylist()]
        assert [line[name].removeprefix("'") for line in lines] == texts, name
        assert column.null_count == sum(line[name] == "" for line in lines), name


def test_vllm_bench_has_the_keys_and_the_block_of_vllm(folder: RunFolder, tmp_path: Path) -> None:
    said = ullage("export", folder.root, "--vllm-bench", tmp_path / "bench.json", "--stage", "2")
    assert said.exit_code == 0
    result = json.loads((tmp_path / "bench.json").read_text())
    # 8 users, 5 s a request, 10 s settling of 60: 8 / 5 x 50 requests, and one that was in flight
    assert (result["completed"], result["failed"], result["max_concurrency"]) == (
        80,
        1,
        8,
    )  # one was in flight
    assert result["total_input_tokens"] == result["total_output_tokens"] == 80 * 256
    assert result["mean_ttft_ms"] == pytest.approx(100)
    assert result["median_tpot_ms"] == pytest.approx(4900 / 255)
    assert result["mean_itl_ms"] == pytest.approx(4900 / 255)
    assert result["p99_e2el_ms"] == pytest.approx(5000)
    # a run made before gaps were counted
    assert result["p99_itl_ms"] is result["max_output_tokens_per_s"] is None
    assert set(result) >= {
        "date",
        "backend",
        "model_id",
        "num_prompts",
        "request_rate",
        "burstiness",
        "duration",
    }
    lines = said.stdout.strip().splitlines()
    assert lines[0] == "============ Serving Benchmark Result ============"
    assert lines[1] == "Successful requests:                     80        "
    assert lines[-1] == "=" * 50
    assert "---------------Time to First Token----------------" in lines
    assert "Mean TTFT (ms):                          100.00    " in lines


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "name a file: --csv, --parquet, --sqlite or --vllm-bench"),
        (["--vllm-bench", "x.json", "--stage", "3"], "--stage 3: the run has 2 stages that began and ended"),
        (["--csv", "/nowhere/x.csv"], "cannot write /nowhere/x.csv"),
        (["--sqlite", "/nowhere/x.sqlite"], "cannot write /nowhere/x.sqlite"),
    ],
)
def test_what_cannot_be_exported_is_one_sentence(folder: RunFolder, words: list[str], sentence: str) -> None:
    said = ullage("export", folder.root, *words)
    assert said.exit_code == 2
    assert sentence in said.output
