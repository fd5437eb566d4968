"""A segment as it was written, read into columns: printed rows as a matrix of bytes, others one by one."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from loadtest.columns import DTYPES, NULL, Array, Columns, Flags, columns_of, joined
from loadtest.records import RequestIssued, RequestRecord
from loadtest.row_file import Damage, decode_line, frame
from loadtest.row_form import DECIMALS, ISSUED, REQUEST, Cell, Form

SEQ_BITS: Final = 40
"""Of a key: a million million requests of eight million workers."""
PIECE_BYTES: Final = 8 * 1024 * 1024
"""Read at once: bounds the memory, however long a segment is."""
Key = tuple[int, int]
"""(worker, seq): a request's name within its run."""
SPACE, ZERO, POINT, END_OF_NULL = b" 0.l"


@dataclass(slots=True, kw_only=True)
class SegmentRows:
    """What one segment holds. `pending` were issued in it and ended elsewhere, `late` the other way round."""

    ended: Columns
    pending: dict[Key, RequestIssued] = field(default_factory=dict)
    late: list[Key] = field(default_factory=list)
    damage: Damage = field(default_factory=Damage)


def read_segment(path: Path) -> SegmentRows:
    """All whole rows of one segment, requests in the order of a report. Raises OSError."""
    rows = SegmentRows(ended=columns_of(()))
    parts: list[Columns] = []
    for lines in _pieces(path, rows.damage):
        ended, issued = _sorted_out(lines, rows.damage)
        parts.append(ended)
        _match(rows, ended, issued)
    rows.ended = joined(parts or [rows.ended]).in_order()
    return rows


def _pieces(path: Path, damage: Damage) -> Iterator[list[bytes]]:
    """Whole lines without their line feeds; what follows the last line feed is a torn tail."""
    rest = b""
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            *lines, rest = (rest + piece).split(b"\n")
            yield lines
    damage.torn_tails += bool(rest)


@dataclass(slots=True)
class _Issues:
    """Printed rows of what was issued, as columns and as text, and those that were not printed."""

    keys: Array
    payloads: list[bytes]
    others: list[RequestIssued]


def _sorted_out(lines: Sequence[bytes], damage: Damage) -> tuple[Columns, _Issues]:
    requests: list[bytes] = []
    issues: list[bytes] = []
    others: list[bytes] = []
    by_width = {REQUEST.width: requests, ISSUED.width: issues}
    crc32 = zlib.crc32
    for line in lines:
        payload = line[9:]
        if line[:9] == b"%08x " % crc32(payload):
            by_width.get(len(payload), others).append(payload)
        else:
            damage.bad_lines += 1
    printed, fit = _matrix(requests, REQUEST)
    issued, issue_fits = _matrix(issues, ISSUED)
    others += [payload for payload, fits in zip(requests, fit, strict=True) if not fits]
    others += [payload for payload, fits in zip(issues, issue_fits, strict=True) if not fits]
    rows = [decode_line(frame(payload)[:-1]) for payload in others]
    damage.bad_lines += rows.count(None)
    plain = columns_of([row for row in rows if isinstance(row, RequestRecord)])
    return joined([printed, plain]), _Issues(
        keys=_keys(issued),
        payloads=[payload for payload, fits in zip(issues, issue_fits, strict=True) if fits],
        others=[row for row in rows if isinstance(row, RequestIssued)],
    )


def _keys(columns: Columns) -> Array:
    """(worker, seq) as one number each."""
    return np.asarray((columns["worker"] << SEQ_BITS) | columns["seq"])


def _match(rows: SegmentRows, ended: Columns, issued: _Issues) -> None:
    """Pairs ends with issues; what is left of either waits for a later piece, or another segment."""
    ends = _keys(ended)
    for row in issued.others:
        rows.pending[row.worker, row.seq] = row
    for position in np.flatnonzero(~np.isin(issued.keys, ends)):
        row_issued = decode_line(frame(issued.payloads[position])[:-1])
        assert isinstance(row_issued, RequestIssued)  # it had the printed form of one
        rows.pending[row_issued.worker, row_issued.seq] = row_issued
    for key in ends[~np.isin(ends, issued.keys)].tolist():
        name = (key >> SEQ_BITS, key & ((1 << SEQ_BITS) - 1))
        if rows.pending.pop(name, None) is None:
            rows.late.append(name)


def _matrix(payloads: Sequence[bytes], form: Form) -> tuple[Columns, Flags]:
    """The columns of the payloads that are printed in this form, and which those are."""
    block = np.frombuffer(b"".join(payloads), np.uint8).reshape(len(payloads), form.width)
    blank = np.frombuffer(form.blank, np.uint8)
    is_value = np.zeros(form.width, np.bool_)
    for cell in form.cells:
        is_value[cell.start : cell.end] = True
    fits: Flags = ((block == blank) | is_value).all(axis=1)
    read = {cell.name: _cell(block[:, cell.start : cell.end], cell) for cell in form.cells}
    for _, valid, _ in read.values():
        fits &= valid
    arrays = {name: values for name, (values, _, _) in read.items()}
    words = {name: tuple(words) for name, (_, _, words) in read.items() if words is not None}
    return Columns(len(payloads), arrays, words).take(fits), fits


def _cell(cell: Array, about: Cell) -> tuple[Array, Flags, list[str | None] | None]:
    """The values of one column of text, which of them were in the form, and its words."""
    match about.kind:
        case "int":
            missing = cell[:, -1] == END_OF_NULL
            return np.where(missing, NULL, _number(cell)), _digits(cell) | missing, None
        case "float":
            missing = cell[:, -1] == END_OF_NULL
            whole, point, part = np.split(cell, [-DECIMALS - 1, -DECIMALS], axis=1)
            nanos = _number(whole) * 10**DECIMALS + _number(part)
            valid = _digits(whole) & _digits(part) & (point[:, 0] == POINT)
            return np.where(missing, np.nan, nanos / 10**DECIMALS), valid | missing, None
        case "flag":
            return cell[:, -3] == ord("r"), np.ones(len(cell), np.bool_), None  # true, not false or null
        case "word":
            codes, words = _words(cell)
            return codes, np.ones(len(cell), np.bool_), words


def _number(cell: Array) -> Array:
    """Digits after spaces; a space counts as the leading zero that it stands for."""
    values = np.zeros(len(cell), np.int64)
    for position in range(cell.shape[1]):
        values *= 10
        values += cell[:, position] & 15
    return values


def _digits(cell: Array) -> Flags:
    figure = cell - ZERO  # unsigned: what is below '0' becomes large
    return np.asarray(((figure < 10) | (cell == SPACE)).all(axis=1))


def _words(cell: Array) -> tuple[Array, list[str | None]]:
    """Codes and words of quoted text; there are few different ones, so they are looked for one by one."""
    texts = np.ascontiguousarray(cell).view(f"S{cell.shape[1]}").ravel()
    codes = np.full(len(texts), -1, DTYPES["word"])
    words: list[str | None] = []
    while len(left := np.flatnonzero(codes < 0)):
        text: Any = texts[left[0]]
        codes[texts == text] = len(words)
        words.append(_word(text))
    return codes, words


def _word(text: bytes) -> str | None:
    word: str | None = json.loads(text)
    return word
