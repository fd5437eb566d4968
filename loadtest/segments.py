"""Rows of a long run, cut into segments: a full one is left to a process that seals it, and the next begins.

Text is what survives a kill; columns are what is small and quick to read. Turning the one into the other
takes seconds of CPU, which the load's own loop does not have: so a process of its own does it, at the lowest
priority, and ends. A segment it did not get to is sealed when the run is finalised.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from loadtest.records import Row
from loadtest.row_file import RowFileError, RowWriter

SEGMENT_BYTES: Final = 64 * 1024 * 1024
SEALED_SUFFIX: Final = ".npz"
SEGMENT: Final = re.compile(r"(?P<stem>.+)-(?P<number>\d{3,})\.(?:jsonl|(?P<crc>[0-9a-f]{8})\.npz)")
"""w00-007.jsonl is being written or waits to be sealed; w00-007.5f3a9c21.npz is sealed, by that CRC-32."""


def next_path(folder: Path, stem: str) -> Path:
    """The first segment of this stem that nobody has begun."""
    found = (SEGMENT.fullmatch(path.name) for path in folder.glob(f"{stem}-*"))
    taken = [int(match["number"]) for match in found if match is not None and match["stem"] == stem]
    return folder / f"{stem}-{max(taken, default=-1) + 1:03d}.jsonl"


def start_sealing(path: Path) -> int:
    """Starts the process that seals one full segment; returns its id.

    posix_spawn, because a fork would copy the page tables of the whole load process while its streams wait.
    """
    command = [sys.executable, "-m", "loadtest.seal", str(path)]
    # a group of its own: Ctrl-C ends the load, not this
    return os.posix_spawn(sys.executable, command, os.environ, setpgroup=0)


class SegmentWriter(RowWriter):
    """A RowWriter that goes on in a new segment when the one it has is full."""

    def __init__(
        self,
        folder: Path,
        stem: str,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        seal: Callable[[Path], int] = start_sealing,
    ) -> None:
        super().__init__(next_path(folder, stem))
        self._stem = stem
        self._segment_bytes = segment_bytes
        self._seal = seal
        self._full_fd: int | None = None
        self._sealers: set[int] = set()

    def append(self, row: Row) -> None:
        super().append(row)
        if self.size_bytes >= self._segment_bytes:
            self._rotate()

    def close(self) -> None:
        super().close()
        self._close_full()
        self._reap()

    def _rotate(self) -> None:
        full = self.path
        # closed one rotation late: sync() may be waiting for the disk with it in another thread
        self._close_full()
        self._full_fd = self._go_on_in(next_path(full.parent, self._stem))
        self._reap()
        try:
            self._sealers.add(self._seal(full))
        except OSError as error:
            raise RowFileError(f"cannot start the process that seals {full}: {error.strerror}") from error

    def _close_full(self) -> None:
        if self._full_fd is not None:
            os.close(self._full_fd)
            self._full_fd = None

    def _reap(self) -> None:
        """Takes note of sealers that ended. Locust's event loop may have done so already."""
        for pid in list(self._sealers):
            ended = pid
            with contextlib.suppress(ChildProcessError):
                ended, _ = os.waitpid(pid, os.WNOHANG)
            if ended == pid:
                self._sealers.discard(pid)
