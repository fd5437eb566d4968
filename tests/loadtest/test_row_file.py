"""Rows that survive: every prefix, every flipped bit, every killed writer."""

from __future__ import annotations

import resource
import signal
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.records import Event, RequestIssued, RequestRecord, Row, Sample
from loadtest.row_file import Damage, RowFileError, RowWriter, decode_line, encode_row, read_rows

ROWS: tuple[Row, ...] = (
    RequestIssued(
        worker=0,
        seq=1,
        endpoint="chat",
        planned_input_tokens=5,
        planned_output_tokens=6,
        intended_ns=7,
    ),
    RequestRecord(
        worker=0,
        seq=1,
        outcome="stream_error",
        endpoint="chat",
        planned_input_tokens=5,
        planned_output_tokens=6,
        intended_ns=7,
        done_ns=9,
        error="\x1b[31m</script>\ud800 \u2028 \x00",
        reused_connection=True,
    ),
    Sample(
        at_ns=8, source="engine", target="http://h:1", signals={"running": 3.0}, labels={"engine": "vllm"}
    ),
    Sample(at_ns=8, source="gpu", target="this machine", gap="no driver"),
    Event(at_ns=1, event="stage", data={"users": 3, "label": "x", "settle_s": 0.5}),
)


def written(path: Path) -> bytes:
    writer = RowWriter(path)
    for row in ROWS:
        writer.append(row)
    writer.close()
    return path.read_bytes()


def read(path: Path) -> tuple[list[Row], Damage]:
    damage = Damage()
    return list(read_rows(path, damage)), damage


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    written(tmp_path / "a.jsonl")
    assert read(tmp_path / "a.jsonl") == (list(ROWS), Damage())


def test_every_prefix_of_a_file_gives_exactly_its_whole_rows(tmp_path: Path) -> None:
    content = written(tmp_path / "a.jsonl")
    cut = tmp_path / "cut.jsonl"
    for length in range(len(content) + 1):
        cut.write_bytes(content[:length])
        whole = content[:length].count(b"\n")
        torn = 0 if length == 0 or content[:length].endswith(b"\n") else 1
        assert read(cut) == (list(ROWS[:whole]), Damage(torn_tails=torn))


def test_every_flipped_bit_is_found_and_costs_one_row(tmp_path: Path) -> None:
    content = written(tmp_path / "a.jsonl")
    flipped = tmp_path / "flipped.jsonl"
    for position in range(0, len(content), 3):
        for bit in (1, 16):
            changed = bytearray(content)
            changed[position] ^= bit
            flipped.write_bytes(changed)
            rows, damage = read(flipped)
            assert damage.bad_lines + damage.torn_tails >= 1
            assert all(row in ROWS for row in rows)
            assert len(rows) >= len(ROWS) - 2  # a flipped line feed joins two lines


def test_a_line_holds_nothing_that_could_break_it() -> None:
    line = encode_row(ROWS[1])
    assert line.isascii()
    assert line.count(b"\n") == 1
    assert b"\x1b" not in line


@given(text=st.text())
@settings(max_examples=200)
def test_any_text_of_a_server_survives_the_round_trip(text: str) -> None:
    row = Event(at_ns=1, event="note", data={"text": text})
    assert decode_line(encode_row(row)[:-1]) == row


@given(line=st.binary(max_size=200))
def test_any_other_line_is_no_row(line: bytes) -> None:
    assert decode_line(line) is None


def test_a_row_of_a_newer_schema_keeps_what_we_know() -> None:
    known = encode_row(ROWS[0])[9:-1]
    newer = known.replace(b'"schema":1', b'"schema":1,"colour":"red"')
    assert decode_line(b"%08x %s" % (zlib.crc32(newer), newer)) == ROWS[0]


def test_a_file_is_never_taken_over(tmp_path: Path) -> None:
    written(tmp_path / "a.jsonl")
    with pytest.raises(RowFileError, match="cannot create"):
        RowWriter(tmp_path / "a.jsonl")


def fill(writer: RowWriter) -> None:
    for _ in range(20):
        writer.append(ROWS[0])


def test_a_full_disk_is_one_sentence_and_costs_the_torn_row_only(tmp_path: Path) -> None:
    """A file size limit stands in for the full disk: the kernel takes part of a row, then refuses."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    writer = RowWriter(tmp_path / "a.jsonl")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(3.5 * len(encode_row(ROWS[0]))), before[1]))
        with pytest.raises(RowFileError, match="cannot write"):
            fill(writer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
        writer.close()
    rows, damage = read(tmp_path / "a.jsonl")
    assert rows == [ROWS[0]] * 3
    assert damage == Damage(torn_tails=1)
