"""Is a worker beside its master? It is asked for a file in the run folder and for the name of its clock."""

from __future__ import annotations

import contextlib
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from loadtest.conductor.far.messages import plain

CLOCK_NAMES: Final = (Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/time"))
"""A machine draws the first when it starts; the second tells namespaces of time apart."""


def clock_name() -> str:
    """The same in all processes that share CLOCK_MONOTONIC; the host's name where /proc is none.

    Machines that were copied while they ran may have one name, and two clocks.
    """
    try:
        boot, namespace = CLOCK_NAMES
        return f"{boot.read_text(encoding='ascii').strip()} {namespace.readlink()}"
    except OSError:
        return socket.gethostname()


@dataclass(frozen=True, slots=True, kw_only=True)
class Met:
    """What a worker answered."""

    host: str
    sees_folder: bool
    same_clock_name: bool
    version: str


class Token:
    """A file that only who sees this very folder can read. Written by the master, gone with the load."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "crew.token"
        self._secret = secrets.token_hex(16)
        self._path.touch(mode=0o600)
        self._path.write_text(self._secret, encoding="ascii")

    def question(self) -> dict[str, Any]:
        """The message a worker is asked with."""
        return {"path": str(self._path.resolve())}

    def met(self, answer: Mapping[str, Any]) -> Met:
        return Met(
            host=plain(answer["host"]),
            sees_folder=answer["secret"] == self._secret,
            same_clock_name=answer["clock"] == clock_name(),
            version=plain(answer["version"]),
        )

    def remove(self) -> None:
        with contextlib.suppress(OSError):
            self._path.unlink()


def own_version() -> str:
    """Of Ullage; empty where it was not installed, but lies on the path."""
    with contextlib.suppress(PackageNotFoundError):
        return version("ullage")
    return ""


def answer(question: Mapping[str, Any]) -> dict[str, Any]:
    """What a worker says: its host, clock and version, and what it read, if the file is there."""
    secret: str | None = None
    with contextlib.suppress(OSError, ValueError):
        path = Path(question["path"])
        if path.name == "crew.token":  # a false master gets no other file read
            secret = path.read_text(encoding="ascii")
    return {"host": socket.gethostname(), "clock": clock_name(), "secret": secret, "version": own_version()}
