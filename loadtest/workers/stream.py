"""The socket side of one request: connect or reuse, send, read with one timestamp a read, give up in time.

Only HTTP/1.1 over gevent sockets, plain or TLS with verification. A redirect is an answer like any other
and is never followed. vLLM closes idle connections after 5 s, so ours are reused within 2 s only.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from gevent import GreenletExit

from loadtest.origin import Origin
from loadtest.records import SUCCESSES, Outcome
from loadtest.scenario import Timeouts
from loadtest.workers.dial import Dial, Wire, dial, dial_outcome, error_text
from loadtest.workers.http1 import BadResponse, ResponseReader
from loadtest.workers.reply import Reply, ReplyTooLarge
from loadtest.workers.sse import EventTooLarge

READ_BYTES: Final = 65_536
IDLE_S_MAX: Final = 2.0
EVENT_STREAM: Final = "text/event-stream"
Clock = Callable[[], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One request and its answer; None where it did not get that far. Times are monotonic nanoseconds.

    `error` holds the server's own words as they came: make them plain before they are stored or shown.
    """

    reply: Reply
    outcome: Outcome
    connected_ns: int | None
    sent_ns: int | None
    headers_ns: int | None
    http_status: int | None
    reused_connection: bool
    retried: bool
    error: str | None
    stopped_by: BaseException | None = None
    """What cancelled it; to be raised again once the row is written."""


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

    def __init__(
        self, origin: Origin, timeouts: Timeouts, clock: Clock = time.perf_counter_ns, dial: Dial = dial
    ) -> None:
        self._origin = origin
        self._timeouts = timeouts
        self._clock = clock
        self._dial = dial
        self._wire: Wire | None = None
        self._idle_since_ns = 0

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
            outcome = fault.outcome if attempt.reply.error is None else "stream_error"
            return _finished(attempt, outcome, error=attempt.reply.error or str(fault), retried=retried)
        except (GreenletExit, KeyboardInterrupt) as stop:
            # Locust stops this user, or Ctrl-C came while it ran: what was seen so far is still a row
            self.close()
            done = _finished(attempt, "client_cancel", error="the run ended first", retried=retried)
            return replace(done, stopped_by=stop)
        return _finished(attempt, outcome, error=None, retried=retried)

    def close(self) -> None:
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    def _new_attempt(self) -> _Attempt:
        if self._wire is not None and self._clock() - self._idle_since_ns > IDLE_S_MAX * 1e9:
            self.close()
        return _Attempt(reused=self._wire is not None, reply=Reply(is_stream=True), reader=ResponseReader())

    def _run(
        self, attempt: _Attempt, request: bytes, intended_ns: int, planned_output_tokens: int
    ) -> Outcome:
        if self._wire is None:
            self._wire = self._connect()
            attempt.connected_ns = self._clock()
        wire = self._wire
        outcome = self._arm(attempt, wire, intended_ns)
        try:
            wire.sendall(request)
        except TimeoutError as error:
            raise _too_late(outcome) from error
        except OSError as error:
            raise _reset(attempt, error) from error
        attempt.sent_ns = self._clock()
        clean_end = self._read(attempt, wire, intended_ns)
        if not (clean_end and attempt.reader.keep_alive) or attempt.reader.has_extra_bytes:
            self.close()
        self._idle_since_ns = self._clock()
        status = attempt.reader.status
        assert status is not None
        return attempt.reply.outcome(
            status=status, clean_end=clean_end, planned_output_tokens=planned_output_tokens
        )

    def _connect(self) -> Wire:
        try:
            return self._dial(self._origin, self._timeouts.connect_s)
        except (OSError, UnicodeError) as error:
            raise Fault(dial_outcome(error), error_text(error)) from error

    def _read(self, attempt: _Attempt, wire: Wire, intended_ns: int) -> bool:
        """Reads until the answer is complete (True) or the server closes early (False)."""
        reader = attempt.reader
        while not reader.complete:
            outcome = self._arm(attempt, wire, intended_ns)
            try:
                data = wire.recv(READ_BYTES)
            except TimeoutError as error:
                raise _too_late(outcome) from error
            except OSError as error:
                raise _reset(attempt, error) from error
            at_ns = self._clock()
            if not data:
                if not attempt.got_bytes:
                    raise _reset(attempt, ConnectionResetError("closed before the first byte"))
                if not reader.has_headers:
                    raise Fault("truncated", "the answer ended inside its headers")
                return reader.end_of_stream()
            attempt.got_bytes = True
            _take(attempt, data, at_ns)
        return True

    def _arm(self, attempt: _Attempt, wire: Wire, intended_ns: int) -> Outcome:
        """Sets how long the next call may take; returns what it is called when it takes longer."""
        limit_ns, outcome = self._limit(attempt.reply, intended_ns)
        left_s = (limit_ns - self._clock()) / 1e9
        if left_s <= 0:
            raise _too_late(outcome)
        wire.settimeout(left_s)
        return outcome

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
        error=error,
    )


def _take(attempt: _Attempt, data: bytes, at_ns: int) -> None:
    try:
        body = attempt.reader.feed(data)
        if attempt.headers_ns is None and attempt.reader.has_headers:
            attempt.headers_ns = at_ns
            attempt.reply.is_stream = _is_event_stream(attempt.reader)
        if body:
            attempt.reply.feed(body, at_ns)
    except (BadResponse, EventTooLarge, ReplyTooLarge) as error:
        raise Fault("bad_payload", str(error)) from error


def _is_event_stream(reader: ResponseReader) -> bool:
    coding = reader.headers.get("content-encoding", "identity").lower()
    if coding != "identity":
        raise Fault("bad_payload", f"the answer is {coding}-encoded though identity was asked for")
    return reader.status == 200 and reader.headers.get("content-type", "").lower().startswith(EVENT_STREAM)


def _too_late(outcome: Outcome) -> Fault:
    return Fault(outcome, f"the time limit passed ({outcome})")


def _reset(attempt: _Attempt, error: OSError) -> Fault:
    if attempt.got_bytes:
        return Fault("reset_midstream", error_text(error))
    return Fault("reset_reused" if attempt.reused else "reset_fresh", error_text(error))
