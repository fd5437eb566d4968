"""A file that grows is followed: each row once, whole, and in order."""

from __future__ import annotations

from pathlib import Path

from loadtest.records import Event
from loadtest.row_file import encode_row
from loadtest.row_tail import RowTail

FIRST, SECOND = (Event(at_ns=at_ns, event="note") for at_ns in (1, 2))


def test_a_file_that_is_not_there_yet_has_no_rows_and_then_has_them_once(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    tail = RowTail(path)
    assert list(tail.new_rows()) == []
    path.write_bytes(encode_row(FIRST))
    assert list(tail.new_rows()) == [FIRST]
    assert list(tail.new_rows()) == []


def test_a_line_that_is_half_written_waits_for_its_other_half(tmp_path: Path) -> None:
    path, line = tmp_path / "samples.jsonl", encode_row(SECOND)
    tail = RowTail(path)
    path.write_bytes(encode_row(FIRST) + line[:20])
    assert list(tail.new_rows()) == [FIRST]
    with path.open("ab") as file:
        file.write(line[20:])
    assert list(tail.new_rows()) == [SECOND]


def test_a_damaged_line_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_bytes(b"00000000 {}\n" + encode_row(SECOND))
    assert list(RowTail(path).new_rows()) == [SECOND]
