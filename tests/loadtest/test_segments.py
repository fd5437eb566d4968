"""Printed rows, columns and the text between them: three forms of one row that never disagree."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.columns import NAMES, columns_of, joined
from loadtest.records import RequestIssued, RequestRecord, Row
from loadtest.row_file import RowFileError, RowWriter, decode_line, encode_row
from loadtest.row_form import REQUEST, column_kinds, printed
from loadtest.seal import open_sealed, seal
from loadtest.segment_text import read_segment
from loadtest.segments import SegmentWriter, next_path

NS = st.integers(0, 2**62)
COUNTS = st.integers(0, 2**31)
TEXTS = (
    st.none() | st.text(max_size=30) | st.sampled_from(["length", "null", "true", '"', "\\", "é", "\ud800"])
)
SECONDS = (
    st.none()
    | st.integers(0, 10**12).map(lambda ns: ns / 1e9)
    | st.floats(0, 1e12)
    | st.sampled_from([1e-10, 0.1, 1e22])
)
REQUESTS = st.builds(
    RequestRecord,
    worker=st.integers(0, 99_999),
    seq=st.integers(0, 2**40 - 1),
    outcome=st.sampled_from(["ok", "short_eos", "stream_error", "client_cancel"]),
    endpoint=st.sampled_from(["chat", "completions"]) | st.text(max_size=30),
    planned_input_tokens=COUNTS,
    planned_output_tokens=COUNTS,
    intended_ns=NS,
    connected_ns=st.none() | NS,
    sent_ns=st.none() | NS,
    headers_ns=st.none() | NS,
    first_token_ns=st.none() | NS,
    first_output_ns=st.none() | NS,
    last_token_ns=st.none() | NS,
    done_ns=NS,
    input_tokens=st.none() | COUNTS | st.integers(-(10**12), 10**12),
    output_tokens=st.none() | COUNTS,
    first_chunk_tokens=COUNTS,
    chunks=COUNTS,
    coalesced_reads=COUNTS,
    gap_p50_s=SECONDS,
    gap_p99_s=SECONDS,
    gap_max_s=SECONDS,
    finish_reason=TEXTS,
    http_status=st.none() | st.integers(100, 599),
    reused_connection=st.booleans(),
    retried=st.booleans(),
    error=TEXTS,
    error_type=TEXTS,
    error_number=st.none() | st.integers(-200, 200),
)
ISSUES = st.builds(
    RequestIssued,
    worker=st.integers(0, 99_999),
    seq=st.integers(0, 2**40 - 1),
    endpoint=st.just("chat") | st.text(max_size=30),
    planned_input_tokens=COUNTS,
    planned_output_tokens=COUNTS,
    intended_ns=NS,
)


def a_good_request(seq: int) -> RequestRecord:
    return RequestRecord(
        worker=1,
        seq=seq,
        outcome="ok",
        endpoint="chat",
        planned_input_tokens=10,
        planned_output_tokens=20,
        intended_ns=10**15 + seq,
        sent_ns=10**15 + seq + 5,
        done_ns=10**15 + seq + 10**9,
        gap_p50_s=0.020000001,
        finish_reason="length",
        http_status=200,
    )


def write(path: Path, rows: Sequence[Row]) -> None:
    writer = RowWriter(path)
    for row in rows:
        writer.append(row)
    writer.close()


@given(row=REQUESTS | ISSUES)
@settings(max_examples=200, deadline=None)
def test_a_row_means_the_same_printed_or_plain(row: Row) -> None:
    line = encode_row(row)
    assert line.count(b"\n") == 1
    assert line.isascii()
    assert decode_line(line[:-1]) == row
    json.loads(line[9:])


@given(rows=st.lists(REQUESTS, max_size=8, unique_by=lambda r: (r.worker, r.seq)))
@settings(max_examples=50, deadline=None)
def test_text_becomes_the_same_columns_as_the_rows_themselves(
    rows: list[RequestRecord], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("segment") / "w00-000.jsonl"
    write(path, rows)
    in_order = sorted(rows, key=lambda r: (r.intended_ns, r.worker, r.seq))
    read = read_segment(path)
    assert list(read.ended.records()) == in_order
    assert sorted(read.late) == sorted((r.worker, r.seq) for r in rows)
    sealed = seal(path)
    assert sealed is not None
    assert list(open_sealed(sealed).columns(NAMES).records()) == in_order


def test_what_a_load_writes_all_the_time_is_printed() -> None:
    """A field that no longer fits its column would cost the quick way, and nobody would notice."""
    record = a_good_request(1)
    assert printed(record) is not None
    assert len(printed(record) or b"") == REQUEST.width < 1000
    assert set(column_kinds(RequestRecord)) == set(NAMES)


def test_prefixes_of_a_segment_give_exactly_their_whole_rows(tmp_path: Path) -> None:
    rows: list[Row] = [a_good_request(seq) for seq in range(4)]
    write(tmp_path / "w00-000.jsonl", rows)
    content = (tmp_path / "w00-000.jsonl").read_bytes()
    cut = tmp_path / "w00-001.jsonl"
    ends = [position for position, byte in enumerate(content) if byte == ord("\n")]
    near = {end + step for end in ends for step in range(-10, 12)} & set(range(len(content) + 1))
    for length in sorted(near | set(range(0, len(content), 29))):
        cut.write_bytes(content[:length])
        read = read_segment(cut)
        assert list(read.ended.records()) == rows[: content[:length].count(b"\n")]
        assert read.damage.torn_tails == (length > 0 and content[length - 1 : length] != b"\n")
        assert read.damage.bad_lines == 0


def test_any_flipped_bit_of_a_segment_costs_at_most_its_own_row(tmp_path: Path) -> None:
    rows = [a_good_request(seq) for seq in range(3)]
    write(tmp_path / "w00-000.jsonl", rows)
    content = (tmp_path / "w00-000.jsonl").read_bytes()
    flipped = tmp_path / "w00-001.jsonl"
    for position in range(0, len(content), 13):
        changed = bytearray(content)
        changed[position] ^= 1 << (position % 8)
        flipped.write_bytes(changed)
        read = read_segment(flipped)
        found = list(read.ended.records())
        assert read.damage.bad_lines + read.damage.torn_tails >= 1
        assert all(row in rows for row in found)
        assert len(found) >= 1  # a flipped line feed joins two lines


def test_a_value_wider_than_its_column_goes_the_plain_way(tmp_path: Path) -> None:
    rows = [a_good_request(seq) for seq in range(2)]
    wide = RequestRecord(
        **{name: getattr(rows[0], name) for name in NAMES}
        | {"seq": 7, "error": "broken pipe", "chunks": 10**12}
    )
    assert printed(wide) is None
    write(tmp_path / "w00-000.jsonl", [rows[0], wide, rows[1]])
    assert [r.seq for r in read_segment(tmp_path / "w00-000.jsonl").ended.records()] == [0, 7, 1]


def test_joined_parts_keep_their_words() -> None:
    first, second = a_good_request(1), a_good_request(2)
    parts = [columns_of([first]), columns_of([]), columns_of([second])]
    assert list(joined(parts).records()) == [first, second]
    assert math.isnan(joined(parts)["gap_max_s"][0])


def test_segments_are_numbered_on_whatever_became_of_the_earlier_ones(tmp_path: Path) -> None:
    for name in ("w00-000.0badcafe.npz", "w00-001.jsonl", "w01-007.jsonl", "w00-x.jsonl", ".w00-009.tmp"):
        (tmp_path / name).touch()
    assert next_path(tmp_path, "w00").name == "w00-002.jsonl"
    assert next_path(tmp_path, "w01").name == "w01-008.jsonl"
    assert next_path(tmp_path, "w02").name == "w02-000.jsonl"


def test_a_sealer_that_cannot_start_is_one_sentence(tmp_path: Path) -> None:
    def broken(path: Path) -> int:
        raise OSError(12, "Cannot allocate memory")

    writer = SegmentWriter(tmp_path, "w00", segment_bytes=1, seal=broken)
    with pytest.raises(RowFileError, match=r"cannot start the process that seals .*w00-000"):
        writer.append(a_good_request(0))
    writer.close()
    assert len(list(read_segment(tmp_path / "w00-000.jsonl").ended.records())) == 1
