"""The socket side of one request: connect or reuse, send, read with one timestamp a read, give up in time.

Only HTTP/1.1 over gevent sockets, plain or TLS with verification. A redirect is an answer like any other
and is never followed. vLLM closes idle connections after 5 s, so ours are reused within 2 s only.
"""

from __future__ import annotations

import errno
import socket as errors
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from gevent import GreenletExit, socket
from gevent.ssl import SSLContext

from loadtest.origin import Origin
from loadtest.records import ERROR_BYTES_MAX, SUCCESSES, Outcome
from loadtest.scenario import Timeouts
from loadtest.workers.http1 import BadResponse, ResponseReader
from loadtest.workers.reply import Reply

READ_BYTES: Final = 65_536
IDLE_S_MAX: Final = 2.0
EVENT_STREAM: Final = "text/event-stream"
Clock = Callable[[], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One request and its answer; None where it did not get that far. Times are monotonic nanoseconds."""

    reply: Reply
    outcome: Outcome
    connected_ns: int | None
    sent_ns: int | None
    headers_ns: int | None
    http_status: int | None
    reused_connection: bool
    retried: bool
    error: str | None


class Fault(Exception):  # noqa: N818  (reads as what happened)
    """A request that cannot go on, and how it is called."""

    def __init__(self, outcome: Outcome, error: str) -> None:
        super().__init__(error)
        self.outcome: Outcome = outcome


@dataclass(slots=True)
class _Attempt:
    """The facts of one try, filled in as it goes on, so that a fault in the middle keeps what was seen."""

    reused: bool
    reply: Reply
    reader: ResponseReader
    connected_ns: int | None = None
    sent_ns: int | None = None
    headers_ns: int | None = None
    got_bytes: bool = False


class Connection:
    """One user's connection to one origin. Not shared: requests of a user follow each other."""

    def __init__(self, origin: Origin, timeouts: Timeouts, clock: Clock = time.perf_counter_ns) -> None:
        self._origin = origin
        self._timeouts = timeouts
        self._clock = clock
        self._socket: socket.socket | None = None
        self._idle_since_ns = 0
        self._tls: SSLContext | None = None

    def exchange(self, request: bytes, intended_ns: int, planned_output_tokens: int) -> Exchange:
        """Sends `request` and reads its answer to the end; faults come back as outcomes, never as errors.

        A reused connection that ends before it returned a byte was closed while idle: the request is sent
        once more on a fresh one, and says so. Its clock goes on from the first intent.
        """
        first = self._try(request, intended_ns, planned_output_tokens, retried=False)
        if first.outcome != "reset_reused":
            return first
        return self._try(request, intended_ns, planned_output_tokens, retried=True)

    def _try(
        self, request: bytes, intended_ns: int, planned_output_tokens: int, *, retried: bool
    ) -> Exchange:
        attempt = self._new_attempt()
        try:
            outcome = self._run(attempt, request, intended_ns, planned_output_tokens)
        except Fault as fault:
            self.close()
            return _finished(attempt, fault.outcome, error=str(fault), retried=retried)
        except GreenletExit:  # Locust stops this user; what was seen so far is still a row
            self.close()
            return _finished(attempt, "client_cancel", error="the run ended first", retried=retried)
        return _finished(attempt, outcome, error=None, retried=retried)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _new_attempt(self) -> _Attempt:
        if self._socket is not None and self._clock() - self._idle_since_ns > IDLE_S_MAX * 1e9:
            self.close()
        return _Attempt(reused=self._socket is not None, reply=Reply(is_stream=True), reader=ResponseReader())

    def _run(
        self, attempt: _Attempt, request: bytes, intended_ns: int, planned_output_tokens: int
    ) -> Outcome:
        if self._socket is None:
            self._socket = self._connect()
            attempt.connected_ns = self._clock()
        connection = self._socket
        try:
            connection.settimeout(self._timeouts.connect_s)
            connection.sendall(request)
        except OSError as error:
            raise _reset(attempt, error) from error
        attempt.sent_ns = self._clock()
        clean_end = self._read(attempt, connection, intended_ns)
        if not (clean_end and attempt.reader.keep_alive):
            self.close()
        self._idle_since_ns = self._clock()
        status = attempt.reader.status
        assert status is not None
        return attempt.reply.outcome(
            status=status, clean_end=clean_end, planned_output_tokens=planned_output_tokens
        )

    def _connect(self) -> socket.socket:
        address = (self._origin.host, self._origin.port)
        try:
            connection = socket.create_connection(address, timeout=self._timeouts.connect_s)
            connection.setsockopt(errors.IPPROTO_TCP, errors.TCP_NODELAY, 1)
            if self._origin.scheme == "http":
                return connection
            self._tls = self._tls or _verifying_context()
            return self._tls.wrap_socket(connection, server_hostname=self._origin.host)
        except OSError as error:
            raise Fault(_connect_outcome(error), _text(error)) from error

    def _read(self, attempt: _Attempt, connection: socket.socket, intended_ns: int) -> bool:
        """Reads until the answer is complete (True) or the server closes early (False)."""
        reader, reply = attempt.reader, attempt.reply
        while not reader.complete:
            limit_ns, outcome = self._limit(reply, intended_ns)
            left_s = (limit_ns - self._clock()) / 1e9
            if left_s <= 0:
                raise Fault(outcome, f"the time limit passed ({outcome})")
            try:
                connection.settimeout(left_s)
                data = connection.recv(READ_BYTES)
            except TimeoutError as error:
                raise Fault(outcome, f"the time limit passed ({outcome})") from error
            except OSError as error:
                raise _reset(attempt, error) from error
            at_ns = self._clock()
            if not data:
                if not attempt.got_bytes:
                    raise _reset(attempt, ConnectionResetError("closed before the first byte"))
                return reader.end_of_stream()
            attempt.got_bytes = True
            _take(attempt, data, at_ns)
        return True

    def _limit(self, reply: Reply, intended_ns: int) -> tuple[int, Outcome]:
        """When to give up, and what that is called: the nearest of the token limit and the total one."""
        limits = self._timeouts
        total_ns = intended_ns + int(limits.total_s * 1e9)
        token: tuple[int, Outcome]
        if reply.last_token_ns is None:
            token = intended_ns + int(limits.first_token_s * 1e9), "stall_ttft"
        else:
            token = reply.last_token_ns + int(limits.between_tokens_s * 1e9), "stall_gap"
        return min(token, (total_ns, "deadline"), key=lambda limit: limit[0])


def _finished(attempt: _Attempt, outcome: Outcome, *, error: str | None, retried: bool) -> Exchange:
    reply = attempt.reply
    if error is None and outcome not in SUCCESSES:
        said = reply.error or reply.unreadable or reply.error_body()
        error = said or f"the answer ended as {outcome}, without a word"
    return Exchange(
        reply=reply,
        outcome=outcome,
        connected_ns=attempt.connected_ns,
        sent_ns=attempt.sent_ns,
        headers_ns=attempt.headers_ns,
        http_status=attempt.reader.status if attempt.reader.has_headers else None,
        reused_connection=attempt.reused,
        retried=retried,
        error=None if error is None else error[:ERROR_BYTES_MAX],
    )


def _take(attempt: _Attempt, data: bytes, at_ns: int) -> None:
    try:
        body = attempt.reader.feed(data)
    except BadResponse as error:
        raise Fault("bad_payload", str(error)) from error
    if attempt.headers_ns is None and attempt.reader.has_headers:
        attempt.headers_ns = at_ns
        kind = attempt.reader.headers.get("content-type", "")
        attempt.reply.is_stream = attempt.reader.status == 200 and kind.startswith(EVENT_STREAM)
    if body:
        attempt.reply.feed(body, at_ns)


def _verifying_context() -> SSLContext:
    context = SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies the certificate and the host name
    context.load_default_certs()
    return context


def _reset(attempt: _Attempt, error: OSError) -> Fault:
    if attempt.got_bytes:
        return Fault("reset_midstream", _text(error))
    return Fault("reset_reused" if attempt.reused else "reset_fresh", _text(error))


def _connect_outcome(error: OSError) -> Outcome:
    by_type: tuple[tuple[type[OSError], Outcome], ...] = (
        (ConnectionRefusedError, "connect_refused"),
        (TimeoutError, "connect_timeout"),
        (ssl.SSLError, "tls"),
        (errors.gaierror, "dns"),
    )
    for kind, outcome in by_type:
        if isinstance(error, kind):
            return outcome
    by_number: dict[int | None, Outcome] = {
        errno.EMFILE: "client_fd",
        errno.ENFILE: "client_fd",
        errno.EADDRNOTAVAIL: "client_ports",
    }
    return by_number.get(error.errno, "connect_refused")


def _text(error: OSError) -> str:
    """Type, errno and message: an error without a text would hide its cause."""
    number = f" [errno {error.errno}]" if error.errno is not None else ""
    return f"{type(error).__name__}{number}: {error.strerror or error or 'no message'}"
