"""Follows a file of rows that is still written: each look gives what was added since the last one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from loadtest.records import Row
from loadtest.row_file import decode_line


class RowTail:
    """Starts at the beginning. A file that is not there yet has no rows; a line that is half there waits."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read_bytes = 0

    def new_rows(self) -> Iterator[Row]:
        """Whole rows only; damaged lines are the report's to count."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._read_bytes)
                for line in file:
                    if not line.endswith(b"\n"):
                        return
                    self._read_bytes += len(line)
                    row = decode_line(line[:-1])
                    if row is not None:
                        yield row
        except OSError:
            return
