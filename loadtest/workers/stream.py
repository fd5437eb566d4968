"""One request over a wire: connect or reuse, send, fold each read as it comes, give up in time.

Only HTTP/1.1, plain or TLS with verification. A redirect is an answer like any other and is never followed.
vLLM closes idle connections after 5 s, so ours are reused within 2 s only. No read has a timer of its own:
the greenlet sleeps until the nearest limit, and looks then whether tokens have moved it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Final

from gevent import GreenletExit

from loadtest.made_often import made_often
from loadtest.origin import Origin
from loadtest.records import SUCCESSES, Outcome
from loadtest.scenario import Timeouts
from loadtest.workers.attempt import Attempt, Fault
from loadtest.workers.dial import Dial, dial, dial_outcome, error_text
from loadtest.workers.reply import Reply
from loadtest.workers.wire import Wire

IDLE_S_MAX: Final = 2.0
Clock = Callable[[], int]


@made_often
class Exchange:
    """One request and its answer; None where it did not get that far. Times are monotonic nanoseconds.

    `error` holds the server's own words as they came: make them plain before they are stored or shown.
    """

    reply: Reply
    outcome: Outcome
    connected_ns: int | None
    sent_ns: int | None
    headers_ns: int | None
    done_ns: int
    http_status: int | None
    reused_connection: bool
    retried: bool
    error: str | None
    error_type: str | None = None
    error_number: int | None = None
    stopped_by: BaseException | None = None
    """What cancelled it; to be raised again once the row is written."""


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
        self._was_used = False
        self._connected_ns: int | None = None
        self._idle_since_ns = 0
        self._attempt: Attempt | None = None
        self._keeps_text = False

    @property
    def last_token_ns(self) -> int | None:
        """When the last token of the answer came that is read now, or was read last."""
        reply = self.reply
        return None if reply is None else reply.last_token_ns

    @property
    def reply(self) -> Reply | None:
        """The answer that is read now, or was read last, with all its tokens; None before the first."""
        if self._attempt is None:
            return None
        self._attempt.catch_up()
        return self._attempt.reply

    def open(self) -> None:
        """Connects before there is a request; whoever fails now will fail again, and be a row, then."""
        with contextlib.suppress(Fault):
            self._connect()

    def exchange(
        self, request: bytes, intended_ns: int, planned_output_tokens: int, *, keeps_text: bool = False
    ) -> Exchange:
        """Sends `request` and reads its answer to the end; faults come back as outcomes, never as errors.

        A reused connection that ends before it returned a byte was closed while idle: the request is sent
        once more on a fresh one, and says so. Its clock goes on from the first intent.
        `keeps_text`: the answer is asked for its text afterwards.
        """
        self._keeps_text = keeps_text
        first = self._try(request, intended_ns, planned_output_tokens, retried=False)
        if first.outcome != "reset_reused":
            return first
        return self._try(request, intended_ns, planned_output_tokens, retried=True)

    def close(self) -> None:
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    def _try(
        self, request: bytes, intended_ns: int, planned_output_tokens: int, *, retried: bool
    ) -> Exchange:
        if self._wire is not None and self._clock() - self._idle_since_ns > IDLE_S_MAX * 1e9:
            self.close()
        attempt = Attempt(reused=self._wire is not None and self._was_used, keeps_text=self._keeps_text)
        self._attempt = attempt
        fault: Fault | None = None
        stop: BaseException | None = None
        try:
            outcome = self._run(attempt, request, intended_ns, planned_output_tokens)
        except Fault as error:
            fault = error
            outcome = fault.outcome if attempt.reply.error is None else "stream_error"
            self.close()
        except (GreenletExit, KeyboardInterrupt) as error:
            # Locust stops this user, or Ctrl-C came while it ran: what was seen so far is still a row
            stop, outcome = error, "client_cancel"
            fault = Fault(outcome, "the run ended first", stop)
            self.close()
        return Exchange(
            reply=attempt.reply,
            outcome=outcome,
            connected_ns=attempt.connected_ns,
            sent_ns=attempt.sent_ns,
            headers_ns=attempt.headers_ns,
            done_ns=self._clock() if attempt.stopped_ns is None else attempt.stopped_ns,
            http_status=attempt.http_status,
            reused_connection=attempt.reused,
            retried=retried,
            error=_words(attempt.reply, outcome, fault),
            error_type=None if fault is None else fault.type,
            error_number=None if fault is None else fault.number,
            stopped_by=stop,
        )

    def _run(self, attempt: Attempt, request: bytes, intended_ns: int, planned_output_tokens: int) -> Outcome:
        wire = self._wire or self._connect()
        if not attempt.reused:
            attempt.connected_ns = self._connected_ns
        within_s, late = self._time_left(attempt.reply, intended_ns)
        try:
            wire.send(request, within_s)
        except TimeoutError as error:
            raise _too_late(late) from error
        except OSError as error:
            raise attempt.reset(error) from error
        attempt.sent_ns = self._clock()
        self._hear(attempt, wire, intended_ns)
        if not (attempt.clean_end and attempt.reader.keep_alive) or attempt.reader.has_extra_bytes:
            self.close()
        self._was_used, self._idle_since_ns = True, self._clock()
        status = attempt.reader.status
        assert status is not None
        return attempt.reply.outcome(
            status=status, clean_end=attempt.clean_end, planned_output_tokens=planned_output_tokens
        )

    def _hear(self, attempt: Attempt, wire: Wire, intended_ns: int) -> None:
        """Until the answer has ended; goes round again only when a limit may have passed."""
        done = False
        while not done:
            left_s, _ = self._time_left(attempt.reply, intended_ns)
            try:
                # a token that comes while we sleep may bring the limit as near as this
                done = wire.listen(attempt.take, min(left_s, self._timeouts.between_tokens_s))
            except OSError as error:
                raise attempt.reset(error) from error

    def _connect(self) -> Wire:
        try:
            self._wire = self._dial(self._origin, self._timeouts.connect_s)
        except (OSError, UnicodeError) as error:
            raise Fault(dial_outcome(error), error_text(error), error) from error
        self._was_used, self._idle_since_ns = False, self._clock()
        self._connected_ns = self._idle_since_ns
        return self._wire

    def _time_left(self, reply: Reply, intended_ns: int) -> tuple[float, Outcome]:
        """Seconds to the nearest of the token limit and the total one, and what it is called to pass it."""
        limits, last_ns = self._timeouts, reply.last_token_ns
        late: Outcome
        if last_ns is None:
            limit_ns, late = intended_ns + int(limits.first_token_s * 1e9), "stall_ttft"
        else:
            limit_ns, late = last_ns + int(limits.between_tokens_s * 1e9), "stall_gap"
        total_ns = intended_ns + int(limits.total_s * 1e9)
        if total_ns < limit_ns:
            limit_ns, late = total_ns, "deadline"
        left_s = (limit_ns - self._clock()) / 1e9
        if left_s <= 0:
            raise _too_late(late)
        return left_s, late


def _words(reply: Reply, outcome: Outcome, fault: Fault | None) -> str | None:
    """Why it was no success: what the server said goes before what we saw."""
    if outcome in SUCCESSES:
        return None
    seen = f"the answer ended as {outcome}, without a word" if fault is None else str(fault)
    if fault is not None:
        return reply.error or seen
    return reply.error or reply.unreadable or reply.error_body() or seen


def _too_late(outcome: Outcome) -> Fault:
    return Fault(outcome, f"the time limit passed ({outcome})")
