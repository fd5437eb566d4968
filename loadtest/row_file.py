"""One file of rows: framed so that a torn or flipped line is found, appended so that none is lost.

One line is `crc32 in hex, space, JSON, line feed`, written by a single os.write to a file opened for
append: a killed process loses at most the line it was writing. The writer holds a lock on its file for as
long as it lives, so that nobody seals a file that still grows.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from estimator.errors import PlainError
from loadtest.records import ROW_SCHEMA, Event, RequestIssued, RequestRecord, Row, Sample, StreamCounts
from loadtest.row_form import printed

_KINDS: Final[dict[str, type[Row]]] = {
    "issued": RequestIssued,
    "request": RequestRecord,
    "streams": StreamCounts,
    "sample": Sample,
    "event": Event,
}
_KIND_OF: Final = {row_type: kind for kind, row_type in _KINDS.items()}
_FIELDS: Final = {
    row_type: tuple(field.name for field in dataclasses.fields(row_type)) for row_type in _KIND_OF
}


class RowFileError(PlainError):
    """A row cannot be stored: the message is one sentence that names the file and the fix."""


class RowWriter:
    """Appends rows to one file of its own; every append is durable against the death of this process."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._fd = _create(path)
        self.path = path
        self.size_bytes = 0

    def append(self, row: Row) -> None:
        """Raises RowFileError when the disk refuses the row: the load must stop then."""
        line = encode_row(row)
        try:
            written = os.write(self._fd, line)
            while written < len(line):  # a disk that fills up takes part of a line first
                written += os.write(self._fd, line[written:])
        except OSError as error:
            raise RowFileError(f"cannot write {self.path}: {error.strerror}; free space and rerun") from error
        self.size_bytes += written

    def sync(self) -> None:
        """Pushes what was appended to the disk itself; call it off the hot path, about once a second.

        Raises OSError, and RowFileError when somebody removed the file: it takes rows as before, and nobody
        will ever read them.
        """
        os.fdatasync(self._fd)
        if os.fstat(self._fd).st_nlink == 0:
            raise RowFileError(f"{self.path} was removed while it was being written: rerun")

    def close(self) -> None:
        os.close(self._fd)

    def _go_on_in(self, path: Path) -> int:
        """Later rows go to a new file; returns the descriptor of the old one, unlocked and still open."""
        fd = _create(path)
        full, self._fd, self.path, self.size_bytes = self._fd, fd, path, 0
        fcntl.flock(full, fcntl.LOCK_UN)
        return full


def _create(path: Path) -> int:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        fd = os.open(path, flags, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
    except OSError as error:
        raise RowFileError(f"cannot create {path}: {error.strerror}") from error
    return fd


def is_locked(path: Path) -> bool:
    """Does a writer, or a sealer, hold this file now? One that is gone was sealed: nobody does."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def encode_row(row: Row) -> bytes:
    """One framed line. Fields that are None are left out or null: both mean "not seen"."""
    payload = printed(row) if isinstance(row, RequestIssued | RequestRecord) else None
    return frame(_plain_json(row) if payload is None else payload)


def frame(payload: bytes) -> bytes:
    """The line of a payload that holds no line feed."""
    return b"%08x %s\n" % (zlib.crc32(payload), payload)


def _plain_json(row: Row) -> bytes:
    row_type = type(row)
    body: dict[str, Any] = {"kind": _KIND_OF[row_type], "schema": ROW_SCHEMA}
    for name in _FIELDS[row_type]:
        value = getattr(row, name)
        if value is not None:
            body[name] = dict(value) if isinstance(value, Mapping) else value
    # ensure_ascii keeps lone surrogates and control characters of a hostile server inert
    return json.dumps(body, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def decode_line(line: bytes) -> Row | None:
    """The row of one line without its line feed, or None when it is torn, flipped or of no known kind."""
    payload = line[9:]
    if line[:9] != b"%08x " % zlib.crc32(payload):
        return None
    body: dict[str, Any] = json.loads(payload)
    row_type = _KINDS.get(body.pop("kind", ""))
    if row_type is None:
        return None
    known = set(_FIELDS[row_type])
    return row_type(**{name: value for name, value in body.items() if name in known})


@dataclass(slots=True)
class Damage:
    """Lines that could not be read back; a killed writer may leave one torn tail a file."""

    torn_tails: int = 0
    bad_lines: int = 0


def read_rows(path: Path, damage: Damage) -> Iterator[Row]:
    """All rows of one file that are whole, in the order they were written."""
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                damage.torn_tails += 1
                continue
            row = decode_line(line[:-1])
            if row is None:
                damage.bad_lines += 1
            else:
                yield row
