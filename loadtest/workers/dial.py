"""How a connection is opened, and what a failure is called: TCP or TLS with verification, in time."""

from __future__ import annotations

import errno
import socket as names
import ssl
import time
from collections.abc import Callable
from functools import cache
from typing import Final

from gevent import Timeout, socket
from gevent.ssl import SSLContext

from loadtest.access import Access, client_context
from loadtest.origin import Origin
from loadtest.records import Outcome
from loadtest.workers.wire import SocketWire, Wire

Dial = Callable[[Origin, float], Wire]
"""Opens a connection within so many seconds; raises OSError or UnicodeError, see `dial_outcome`."""

_BY_TYPE: Final[tuple[tuple[type[Exception], Outcome], ...]] = (
    (ConnectionRefusedError, "connect_refused"),
    (TimeoutError, "connect_timeout"),
    (ssl.SSLError, "tls"),
    (names.gaierror, "dns"),
    (UnicodeError, "dns"),  # a name that cannot be one
)
_BY_NUMBER: Final[dict[int | None, Outcome]] = {
    errno.EMFILE: "client_fd",
    errno.ENFILE: "client_fd",
    errno.EADDRNOTAVAIL: "client_ports",
}


def dial(origin: Origin, timeout_s: float, clock: Callable[[], int] = time.perf_counter_ns) -> SocketWire:
    """A connected wire, whose reads `clock` dates.

    The limit covers the name, the connection and the TLS handshake together.
    """
    with Timeout(timeout_s, TimeoutError(f"no connection within {timeout_s:g} s")):
        connection = _connected(origin.host, origin.port)
        try:
            connection.setsockopt(names.IPPROTO_TCP, names.TCP_NODELAY, 1)
            if origin.scheme == "http":
                return SocketWire(connection, clock=clock)
            connection = _context(origin.access).wrap_socket(connection, server_hostname=origin.host)
            return SocketWire(connection, clock=clock)
        except BaseException:
            connection.close()
            raise


def _connected(host: str, port: int) -> socket.socket:
    """gevent asks a thread for every name, an address included: a thousand users would queue for it."""
    family = names.AF_INET6 if ":" in host else names.AF_INET
    try:
        names.inet_pton(family, host)
    except OSError:
        return socket.create_connection((host, port))
    connection = socket.socket(family)
    try:
        connection.connect((host, port))
    except BaseException:
        connection.close()
        raise
    return connection


def dial_outcome(error: OSError | UnicodeError) -> Outcome:
    """The outcome of a request that got no connection; an unreachable host counts as refused."""
    for kind, outcome in _BY_TYPE:
        if isinstance(error, kind):
            return outcome
    return _BY_NUMBER.get(getattr(error, "errno", None), "connect_refused")


def error_text(error: Exception) -> str:
    """Type, errno and message: an error without a text would hide its cause."""
    number = getattr(error, "errno", None)
    shown = f" [errno {number}]" if number is not None else ""
    return f"{type(error).__name__}{shown}: {getattr(error, 'strerror', None) or error or 'no message'}"


@cache
def _context(access: Access) -> ssl.SSLContext:
    """Reading the system's certificates takes 20 ms: once a process, not once a user."""
    return client_context(access, SSLContext)
