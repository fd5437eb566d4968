"""What of an attempt each token passes: most reads are tokens of a known form, and are only dated. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from loadtest.workers.event_form import PLAIN, EventForm
from loadtest.workers.reply import Reply

NONE_KNOWN: Final[Mapping[int, tuple[bytes, slice]]] = {}


class PythonSteady:
    """`_reader_steady.c` has the same in C: for the same reads it must give the same times."""

    __slots__ = ("_bytes_max", "_date_one", "_known", "_tail", "read_bytes", "steady")

    def __init__(self, reply: Reply, bytes_max: int) -> None:
        self._date_one = reply.token_ns.append
        self._bytes_max = bytes_max
        self.steady: EventForm | None = None
        """Set while the next read may be whole chunks of a token each: nothing of it has come before."""
        self._known, self._tail = NONE_KNOWN, b""
        """What `steady` knows of a read by its length: with it at hand, most reads need no more calls."""
        self.read_bytes = 0

    def take(self, data: bytes, at_ns: int) -> bool:
        """One read; True when nothing more will come. Raises what `_take_other` raises."""
        size = len(data)
        self.read_bytes += size
        known = self._known.get(size)
        if (
            known is not None
            and data.startswith(known[0])
            and data.endswith(self._tail)
            and not data[known[1]].translate(None, PLAIN)
            and self.read_bytes <= self._bytes_max
        ):
            self._date_one(at_ns)
            return False
        return self._take_other(data, at_ns)

    def catch_up(self) -> None:
        """The reply has all tokens that were read so far: here it has them at once."""

    def _take_other(self, data: bytes, at_ns: int) -> bool:
        """A read that is not of the known form, or was not recognised here; `read_bytes` has counted it."""
        raise NotImplementedError

    def _expect(self, form: EventForm | None) -> None:
        self.steady = form
        self._known, self._tail = (NONE_KNOWN, b"") if form is None else (form.heads, form.tail)
