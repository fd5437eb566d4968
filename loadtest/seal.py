"""python -m loadtest.seal SEGMENT: turns a full segment of text into a small sealed file of columns.

The sealed file carries its own CRC-32 in its name, is complete before it has that name, and only then the
text goes. Killed at any moment, this leaves the text, the sealed file, or both; never neither.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from estimator.errors import PlainError
from estimator.whole_file import put_in_place
from loadtest.columns import Columns, DamagedColumns, packed, read_about, unpacked
from loadtest.records import RequestIssued
from loadtest.row_file import Damage, RowFileError
from loadtest.segment_text import Key, SegmentRows, read_segment
from loadtest.segments import SEALED_SUFFIX, SEGMENT

PRIORITY_STEPS_DOWN = 19
READ_BYTES = 1 << 20


class DamagedSegmentError(PlainError):
    """A sealed segment is not what was sealed: one sentence that names the file and the fix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedSegment:
    """A sealed file and what it says of itself; columns are read when they are asked for."""

    path: Path
    about: Mapping[str, Any]

    @property
    def rows(self) -> int:
        return int(self.about["rows"])

    @property
    def damage(self) -> Damage:
        return Damage(**self.about["damage"])

    @property
    def pending(self) -> dict[Key, RequestIssued]:
        issued = [RequestIssued(**fields) for fields in self.about["pending"]]
        return {(row.worker, row.seq): row for row in issued}

    @property
    def late(self) -> list[Key]:
        return [(worker, seq) for worker, seq in self.about["late"]]

    def columns(self, names: Iterable[str]) -> Columns:
        """Raises DamagedSegmentError."""
        with _said_of(self.path), zipfile.ZipFile(self.path) as content:
            return unpacked(content, names, self.about)


@contextlib.contextmanager
def _said_of(path: Path) -> Iterator[None]:
    try:
        yield
    except (DamagedColumns, zipfile.BadZipFile, OSError) as error:
        raise DamagedSegmentError(
            f"{path} is damaged ({error}) and its requests are lost; move it away to go on without them"
        ) from error


def open_sealed(path: Path) -> SealedSegment:
    """Compares every byte with the checksum in the name. Raises DamagedSegmentError."""
    named = SEGMENT.fullmatch(path.name)
    with _said_of(path):
        if named is None or f"{_crc_of(path):08x}" != named["crc"]:
            raise DamagedColumns("its bytes do not have the checksum in its name")
        with zipfile.ZipFile(path) as content:
            return SealedSegment(path=path, about=read_about(content))


def _crc_of(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while piece := file.read(READ_BYTES):
            crc = zlib.crc32(piece, crc)
    return crc


def sealed_path(text: Path) -> Path | None:
    """The sealed file of this segment, when it has one."""
    return next(iter(sorted(text.parent.glob(f"{text.stem}.????????{SEALED_SUFFIX}"))), None)


def seal(text: Path, *, is_last: bool = False) -> Path | None:
    """Seals one segment; None when somebody else did meanwhile, or its writer still lives.

    `is_last`: it may be the segment its writer is at; all others only wait for another sealer. Text with
    damaged lines stays beside the sealed file, as evidence. Raises RowFileError, DamagedSegmentError.
    """
    try:
        with text.open("rb") as held:
            fcntl.flock(held, fcntl.LOCK_EX | (fcntl.LOCK_NB if is_last else 0))
            if os.fstat(held.fileno()).st_nlink == 0:
                return None
            path = sealed_path(text) or write_sealed(read_segment(text), text)
            if not open_sealed(path).damage.bad_lines:
                text.unlink()
            return path
    except (BlockingIOError, FileNotFoundError):
        return None
    except OSError as error:
        raise RowFileError(f"cannot seal {text}: {error.strerror}; free space and rerun") from error


def write_sealed(rows: SegmentRows, text: Path) -> Path:
    """The sealed file of the segment `text`, which these rows are of. Raises OSError."""
    content = packed(rows.ended, about_rows(rows))
    path = text.with_name(f"{text.stem}.{zlib.crc32(content):08x}{SEALED_SUFFIX}")
    draft = path.with_name(f".{text.stem}.tmp")
    draft.unlink(missing_ok=True)  # a sealer was killed: we hold the lock, so nobody writes it
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    put_in_place(draft, path)
    return path


def about_rows(rows: SegmentRows) -> dict[str, Any]:
    """What a fold wants to know of a segment before it reads a column. Times are None without a request."""
    ended = rows.ended
    return {
        "rows": ended.rows,
        "intended_first_ns": int(ended["intended_ns"].min()) if ended.rows else None,
        "intended_last_ns": int(ended["intended_ns"].max()) if ended.rows else None,
        "done_last_ns": int(ended["done_ns"].max()) if ended.rows else None,
        "pending": [dataclasses.asdict(row) for row in rows.pending.values()],
        "late": rows.late,
        "damage": dataclasses.asdict(rows.damage),
    }


def main(arguments: list[str]) -> int:
    """Seals the segments named; the load that started this goes first wherever both want the CPU."""
    os.nice(PRIORITY_STEPS_DOWN)
    for argument in arguments:
        seal(Path(argument))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
