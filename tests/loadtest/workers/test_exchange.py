"""One exchange over recorded bytes and a clock of our own: the times of a row, checked to the nanosecond."""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from gevent import GreenletExit

from loadtest.origin import Origin
from loadtest.scenario import Timeouts
from loadtest.workers.dial import dial_outcome
from loadtest.workers.stream import Connection, Exchange
from loadtest.workers.wire import Take

STREAMS = Path(__file__).parents[2] / "fixtures/streams"
ORIGIN = Origin(scheme="http", host="server", port=80)
LIMITS = Timeouts(connect_s=1.0, first_token_s=10.0, between_tokens_s=5.0, total_s=60.0)
MS = 1_000_000
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(*data: str) -> bytes:
    body = "".join(f"data: {one}\n\n" for one in data).encode()
    return b"%x\r\n%s\r\n" % (len(body), body)


def token(finish: str = "null") -> str:
    return '{"choices":[{"index":0,"text":"a","finish_reason":' + finish + "}]}"


USAGE = '{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":3}}'
END = chunk(token('"length"'), USAGE, "[DONE]") + b"0\r\n\r\n"


@dataclass
class Clock:
    now_ns: int = 0

    def __call__(self) -> int:
        return self.now_ns


Said = tuple[int, bytes | BaseException]
"""Milliseconds the server takes, then what the read gives: bytes, b"" for a close, or an error."""


@dataclass
class RecordedWire:
    """A connection that plays what it was given; the clock goes on while it makes its reader wait."""

    clock: Clock
    says: list[Said]
    refuses: BaseException | None = None
    sent: list[bytes] = field(default_factory=list)
    is_closed: bool = False

    def send(self, data: bytes, within_s: float) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.sent.append(data)

    def listen(self, take: Take, within_s: float) -> bool:
        late_ns = self.clock.now_ns + int(within_s * 1e9)
        while self.says:
            wait_ms, what = self.says[0]
            if self.clock.now_ns + wait_ms * MS > late_ns:
                self.says[0] = wait_ms - (late_ns - self.clock.now_ns) // MS, what
                self.clock.now_ns = late_ns
                return False
            self.says.pop(0)
            self.clock.now_ns += wait_ms * MS
            if isinstance(what, BaseException):
                raise what
            if take(what, self.clock.now_ns):
                return True
        return take(b"", self.clock.now_ns)

    def close(self) -> None:
        self.is_closed = True


class Line:
    """Connections in the order they are dialled, 2 ms each."""

    def __init__(self, *scripts: Sequence[Said] | RecordedWire | Exception) -> None:
        self.clock = Clock()
        self._left = list(scripts)
        self.wires: list[RecordedWire] = []
        self.connection = Connection(ORIGIN, LIMITS, self.clock, self._dial)

    def _dial(self, origin: Origin, timeout_s: float) -> RecordedWire:
        assert (origin, timeout_s) == (ORIGIN, LIMITS.connect_s)
        script = self._left.pop(0)
        if isinstance(script, Exception):
            raise script
        self.clock.now_ns += 2 * MS
        wire = script if isinstance(script, RecordedWire) else RecordedWire(self.clock, list(script))
        wire.clock = self.clock
        self.wires.append(wire)
        return wire

    def ask(self) -> Exchange:
        return self.connection.exchange(b"request", self.clock(), 3)


GOOD: list[Said] = [(10, HEAD), (90, chunk(token())), (20, chunk(token())), (30, END)]


def test_every_time_is_that_of_the_read_that_carried_it() -> None:
    exchange = Line(GOOD).ask()
    reply = exchange.reply
    assert (exchange.outcome, exchange.connected_ns, exchange.sent_ns) == ("ok", 2 * MS, 2 * MS)
    assert (exchange.headers_ns, reply.first_token_ns, reply.last_token_ns) == (12 * MS, 102 * MS, 152 * MS)
    assert reply.sorted_gaps_ns().tolist() == [20 * MS, 30 * MS]
    assert (reply.chunks, reply.output_tokens, reply.coalesced_reads) == (3, 3, 0)


def test_tokens_that_came_in_one_read_share_its_time_and_are_called_coalesced() -> None:
    reply = Line([(10, HEAD), (90, chunk(token()) + chunk(token())), (5, END)]).ask().reply
    assert (reply.sorted_gaps_ns().tolist(), reply.coalesced_reads) == ([0, 5 * MS], 1)


@pytest.mark.parametrize("name", ["chat", "completions"])
def test_a_recorded_stream_that_dribbles_in_byte_by_byte_is_ok(name: str) -> None:
    content = (STREAMS / f"vllm-0.32-{name}.http").read_bytes()
    exchange = Line([(1, content[i : i + 1]) for i in range(len(content))]).ask()
    assert (exchange.outcome, exchange.reply.output_tokens) == ("ok", 8)


@pytest.mark.parametrize(
    ("says", "outcome", "gave_up_ms"),
    [
        ([], "reset_fresh", 2),
        ([(99_000, HEAD)], "stall_ttft", 10_000),
        ([(10, HEAD), (99_000, END)], "stall_ttft", 10_000),
        ([(10, HEAD), (90, chunk(token())), (99_000, END)], "stall_gap", 5_102),
        ([(10, HEAD)] + [(4_000, chunk(token()))] * 20, "deadline", 60_000),
        ([(10, HEAD), (9, ConnectionResetError(104, "reset"))], "reset_midstream", 21),
        ([(10, HEAD[:30])], "truncated", 12),
        ([(10, b"HTTP/1.1 100 Continue\r\n\r\n")], "truncated", 12),
        ([(10, HEAD + chunk(token()))], "truncated", 12),
        ([(10, HEAD.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n"))], "bad_payload", 12),
    ],
)
def test_a_server_that_fails_is_given_up_in_time_and_by_its_right_name(
    says: list[Said], outcome: str, gave_up_ms: int
) -> None:
    line = Line(says)
    exchange = line.ask()
    assert (exchange.outcome, line.clock() // MS) == (outcome, gave_up_ms)
    assert exchange.error, "a fault without a text hides its cause"
    assert line.wires[0].is_closed


@pytest.mark.parametrize("after", [(9, ConnectionResetError(104, "reset")), (99_000, b"x"), (9, b"zz\r\n")])
def test_an_error_the_server_named_beats_what_came_after_it(after: Said) -> None:
    said = chunk(token(), '{"error":{"message":"engine died"}}')
    exchange = Line([(10, HEAD + said), after]).ask()
    assert (exchange.outcome, exchange.error) == ("stream_error", "engine died")


def test_a_request_the_server_does_not_take_is_given_up_and_never_sent_twice() -> None:
    line = Line(GOOD)
    line.ask()
    line.wires[0].refuses = TimeoutError()
    exchange = line.ask()
    assert (exchange.outcome, exchange.retried, len(line.wires)) == ("stall_ttft", False, 1)


@pytest.mark.parametrize("refuses", [None, BrokenPipeError(32, "broken pipe")], ids=["on read", "on write"])
def test_a_connection_closed_while_idle_is_replaced_and_the_clock_goes_on(refuses: OSError | None) -> None:
    line = Line(GOOD, GOOD)
    line.ask()
    line.wires[0].refuses = refuses
    intended_ns = line.clock()
    exchange = line.ask()
    assert (exchange.outcome, exchange.retried, exchange.reused_connection) == ("ok", True, False)
    assert exchange.reply.first_token_ns == intended_ns + 102 * MS


def test_a_connection_that_closed_after_its_first_byte_is_not_tried_again() -> None:
    line = Line([*GOOD, (5, HEAD[:10])], GOOD)
    line.ask()
    exchange = line.ask()
    assert (exchange.outcome, exchange.retried) == ("truncated", False)


def test_a_connection_idle_for_more_than_two_seconds_is_not_used_again() -> None:
    line = Line(GOOD + GOOD + GOOD, GOOD)
    line.ask()
    line.clock.now_ns += 1_999 * MS
    assert line.ask().reused_connection
    line.clock.now_ns += 2_001 * MS
    assert not line.ask().reused_connection


def test_a_connection_that_says_more_than_its_answer_is_not_used_again() -> None:
    line = Line([*GOOD[:-1], (30, END + b"HTTP/1.1 200 OK\r\n")], GOOD)
    line.ask()
    assert line.wires[0].is_closed
    assert line.ask().outcome == "ok"


@pytest.mark.parametrize("stop", [GreenletExit(), KeyboardInterrupt()])
def test_a_request_that_is_cancelled_keeps_what_it_saw_and_what_stopped_it(stop: BaseException) -> None:
    exchange = Line([*GOOD[:2], (5, stop)]).ask()
    assert (exchange.outcome, exchange.reply.chunks, exchange.stopped_by) == ("client_cancel", 1, stop)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ConnectionRefusedError(111, "refused"), "connect_refused"),
        (TimeoutError("no connection within 1 s"), "connect_timeout"),
        (ssl.SSLCertVerificationError("self-signed certificate"), "tls"),
        (socket.gaierror(-2, "unknown name"), "dns"),
        (UnicodeError("label too long"), "dns"),
        (OSError(errno.EMFILE, "too many open files"), "client_fd"),
        (OSError(errno.EADDRNOTAVAIL, "no port left"), "client_ports"),
        (OSError(errno.EHOSTUNREACH, "no route"), "connect_refused"),
    ],
)
def test_no_connection_is_an_outcome_with_a_reason(error: OSError | UnicodeError, outcome: str) -> None:
    assert dial_outcome(error) == outcome
    exchange = Line(error).ask()
    assert (exchange.outcome, exchange.sent_ns, exchange.http_status) == (outcome, None, None)
    assert exchange.error
