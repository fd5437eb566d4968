"""A connection that gives every read, and the time of that read, to whoever listens; inside the event loop.

The loop itself reads: no greenlet wakes for a token, only for the end of an answer or of its time. That is
what lets one core carry a hundred thousand tokens a second and keeps their times true.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from time import perf_counter_ns
from typing import Any, Final, Protocol

from gevent import socket
from gevent.hub import Waiter, get_hub
from gevent.ssl import SSLSocket

from loadtest.workers.ear import Ear, Hear, ear
from loadtest.workers.native import IS_NATIVE, Reading

READ_BYTES: Final = 65_536
_LATE: Final = object()

Take = Callable[[bytes, int], bool]
"""Gets what one read gave, b"" at the end of the stream, and when it was read; True when it has enough."""


class Wire(Protocol):
    """What an exchange needs of a connection; a test puts recorded bytes here."""

    def send(self, data: bytes, within_s: float) -> None:
        """Raises TimeoutError when the peer does not take it in time, OSError when it is gone."""

    def listen(self, take: Take, within_s: float) -> bool:
        """Gives every read to `take`. True when that has enough, False when the time passed first.

        Raises what `take` raises, and OSError when the connection breaks.
        """

    def close(self) -> None: ...


class SocketWire:
    """A connected socket, plain or TLS. Belongs to one greenlet."""

    __slots__ = ("_clock", "_ear", "_is_tls", "_loop", "_number", "_socket", "_take", "_waiter")

    def __init__(
        self, connection: socket.socket, of: Ear | None = None, clock: Callable[[], int] = perf_counter_ns
    ) -> None:
        self._socket = connection
        self._clock = clock
        self._number = connection.fileno()
        self._loop = get_hub().loop
        self._ear = of or ear()
        self._is_tls = isinstance(connection, SSLSocket)
        self._take: Take = _nobody
        self._waiter: Any = None

    def send(self, data: bytes, within_s: float) -> None:
        self._socket.settimeout(within_s)
        self._socket.sendall(data)

    def listen(self, take: Take, within_s: float) -> bool:
        self._socket.settimeout(0.0)  # a read that finds nothing says so
        self._take, self._waiter = take, Waiter()
        limit = self._loop.timer(within_s)
        limit.start(self._wake, _LATE)
        self._ear.listen(self._number, self._hearer(take))
        try:
            self._ear.hear()  # others were kept waiting while this one sent
            ended: object = self._waiter.get()
        finally:
            self._ear.stop(self._number)
            limit.close()
            self._take, self._waiter = _nobody, None  # no cycle is left for the collector
        if isinstance(ended, BaseException):
            raise ended
        return ended is not _LATE

    def close(self) -> None:
        self._ear.stop(self._number)  # before it can be that of another connection
        self._socket.close()

    def _wake(self, ended: object) -> None:
        """Later in this turn of the loop: what other connections have to say is read and dated first."""
        self._ear.stop(self._number)
        self._loop.run_callback(self._waiter.switch, ended)

    def _hearer(self, take: Take) -> Hear:
        if self._is_tls:
            return self._read_tls
        if IS_NATIVE:
            return Reading(self._number, take, self._clock, self._wake)
        return self._read

    def _read(self) -> None:
        try:
            data = os.read(self._number, READ_BYTES)
            if self._take(data, self._clock()):
                self._wake(None)
        except BlockingIOError:
            return
        except Exception as error:
            self._wake(error)  # to the greenlet it belongs to; the loop goes on for the others

    def _read_tls(self) -> None:
        """OpenSSL takes one record from the socket, so what follows it keeps the socket readable."""
        try:
            data = self._socket.recv(READ_BYTES)
            if self._take(data, self._clock()):
                self._wake(None)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except Exception as error:
            self._wake(error)


def _nobody(data: bytes, at_ns: int) -> bool:
    raise AssertionError("a read without a listener")
