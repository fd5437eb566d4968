"""A connection that gives every read, and the time of that read, to whoever listens; inside the event loop.

A thread in C reads, or the loop itself: no greenlet wakes for a token, only for the end of an answer or of
its time. That is what keeps the times of tokens true.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from time import perf_counter_ns
from typing import Any, Final, Protocol

from gevent import socket
from gevent.hub import Waiter, get_hub
from gevent.ssl import SSLSocket

from loadtest.workers.ear import Ear, ear
from loadtest.workers.native import Reading

READ_BYTES: Final = 65_536
NOTHING_THERE: Final = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_LATE: Final = object()

Take = Callable[[bytes, int], bool]
"""Gets what one read gave, b"" at the end of the stream, and when it was read; True when it has enough."""
Wake = Callable[[object], None]


class Wire(Protocol):
    """What an exchange needs of a connection; a test puts recorded bytes here."""

    def send(self, data: bytes, within_s: float) -> None:
        """Raises TimeoutError when the peer does not take it in time, OSError when it is gone."""

    def listen(self, take: Take, within_s: float) -> bool:
        """Gives every read to `take`. True when that has enough, False when the time passed first.

        Raises what `take` raises, and OSError when the connection breaks.
        """

    def close(self) -> None: ...


class Heard(Protocol):
    """Where the reads of one socket come from."""

    def listen(self, take: Take, wake: Wake) -> None:
        """Until it is stopped: `wake` gets None when `take` has enough, or what was raised."""

    def stop(self) -> bool:
        """Before its file is closed; also where nobody listens. True: what was read until now was enough.

        Raises what `take` raises.
        """


class LoopReading:
    """Read inside the event loop: TLS, and all where there is no reader in C."""

    __slots__ = ("_clock", "_ear", "_number", "_read", "_take", "_wake")

    def __init__(self, number: int, of: Ear, read: Callable[[int], bytes], clock: Callable[[], int]) -> None:
        self._number = number
        self._ear = of
        self._read = read
        self._clock = clock
        self._take: Take = _nobody
        self._wake: Wake | None = None

    def listen(self, take: Take, wake: Wake) -> None:
        self._take, self._wake = take, wake
        self._ear.listen(self._number, self._hear)

    def stop(self) -> bool:
        self._ear.stop(self._number)
        self._take, self._wake = _nobody, None  # no cycle is left for the collector
        return False

    def _hear(self) -> None:
        """OpenSSL takes one record from the socket, so what follows it keeps the socket readable."""
        wake = self._wake
        assert wake is not None
        try:
            data = self._read(READ_BYTES)
            if self._take(data, self._clock()):
                wake(None)
        except NOTHING_THERE:
            return
        except Exception as error:
            wake(error)  # to the greenlet it belongs to; the loop goes on for the others


class SocketWire:
    """A connected socket, plain or TLS. Belongs to one greenlet."""

    __slots__ = ("_ear", "_heard", "_loop", "_socket", "_waiter")

    def __init__(
        self, connection: socket.socket, of: Ear | None = None, clock: Callable[[], int] = perf_counter_ns
    ) -> None:
        self._socket = connection
        self._loop = get_hub().loop
        self._ear = of or ear()
        self._heard = _heard(connection, self._ear, clock)
        self._waiter: Any = None

    def send(self, data: bytes, within_s: float) -> None:
        self._socket.settimeout(within_s)
        self._socket.sendall(data)

    def listen(self, take: Take, within_s: float) -> bool:
        self._socket.settimeout(0.0)  # a read that finds nothing says so
        self._waiter = Waiter()
        limit = self._loop.timer(within_s)
        limit.start(self._stop_late)
        try:
            self._heard.listen(take, self._wake)
            self._ear.hear()  # others were kept waiting while this one sent
            ended: object = self._waiter.get()
        finally:
            with suppress(Exception):  # of one that is cut short, what came before is all that matters
                self._heard.stop()
            limit.close()
            self._waiter = None
        if isinstance(ended, BaseException):
            raise ended
        return ended is not _LATE

    def close(self) -> None:
        self._heard.stop()  # before its number can be that of another connection
        self._socket.close()

    def _stop_late(self) -> None:
        """The thread may have read the end in time, though the loop had no time to look."""
        try:
            self._wake(None if self._heard.stop() else _LATE)
        except Exception as error:
            self._wake(error)

    def _wake(self, ended: object) -> None:
        """Later in this turn of the loop: what other connections have to say is read and dated first."""
        self._heard.stop()
        self._loop.run_callback(self._waiter.switch, ended)


def _heard(connection: socket.socket, of: Ear, clock: Callable[[], int]) -> Heard:
    number = connection.fileno()
    if isinstance(connection, SSLSocket):
        return LoopReading(number, of, connection.recv, clock)
    if of.reader is not None and clock is perf_counter_ns:
        return Reading(of.reader, number)
    return LoopReading(number, of, partial(os.read, number), clock)


def _nobody(data: bytes, at_ns: int) -> bool:
    raise AssertionError("a read without a listener")
