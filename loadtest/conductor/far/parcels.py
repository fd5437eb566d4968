"""A worker's files on their way to the master: cut into pieces, joined again, checked. Knows no socket."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from estimator.errors import PlainError
from estimator.whole_file import put_in_place

PIECE_BYTES: Final = 256 * 1024
"""Some milliseconds of a master's time, in which it answers nobody else."""


class BrokenParcel(PlainError):  # noqa: N818  (what was found)
    """What came is not what was sent: one sentence that names the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """A file as its owner described it; `name` is its path inside a run folder."""

    name: str
    size_bytes: int
    sha256: str

    def message(self) -> dict[str, Any]:
        return asdict(self)


def parcel(root: Path, name: str) -> Parcel:
    """Raises OSError."""
    with (root / name).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Parcel(name=name, size_bytes=(root / name).stat().st_size, sha256=digest)


def parcel_of(message: Mapping[str, Any]) -> Parcel:
    return Parcel(
        name=str(message["name"]), size_bytes=int(message["size_bytes"]), sha256=str(message["sha256"])
    )


def piece(path: Path, start: int) -> bytes:
    """The bytes from `start` on, at most PIECE_BYTES of them. Raises OSError."""
    with path.open("rb") as file:
        file.seek(start)
        return file.read(PIECE_BYTES)


class Joiner:
    """Puts the pieces of one parcel into a draft beside `path`; `path` is there when all are, and right."""

    def __init__(self, parcel: Parcel, path: Path) -> None:
        self._parcel = parcel
        self._path = path
        self._draft = path.with_name(f".{path.name}.tmp")
        self._digest = hashlib.sha256()
        self.next_start = 0

    def __enter__(self) -> Joiner:
        """Raises OSError."""
        if self._path.exists():
            raise BrokenParcel(f"{self._parcel.name} was sent twice")
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._draft.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        self._file = os.fdopen(os.open(self._draft, flags, 0o600), "wb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._draft.unlink(missing_ok=True)

    @property
    def is_whole(self) -> bool:
        return self.next_start == self._parcel.size_bytes

    def take(self, start: int, data: bytes) -> None:
        """Raises BrokenParcel for a piece that is not the next one, OSError where the disk refuses it."""
        if start != self.next_start or not data or start + len(data) > self._parcel.size_bytes:
            raise BrokenParcel(
                f"{self._parcel.name}: {len(data)} bytes came for byte {start}, where "
                f"{self._parcel.size_bytes - self.next_start} were missing from byte {self.next_start} on"
            )
        self._file.write(data)
        self._digest.update(data)
        self.next_start += len(data)

    def finish(self) -> None:
        """Gives the file its name, once it is on the disk. Raises BrokenParcel or OSError."""
        if not self.is_whole or self._digest.hexdigest() != self._parcel.sha256:
            raise BrokenParcel(f"{self._parcel.name} did not arrive as it was sent: its checksum differs")
        self._file.flush()
        os.fsync(self._file.fileno())
        put_in_place(self._draft, self._path)
