"""The socket side against a server that misbehaves on purpose, on loopback, without Locust."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pytest

from loadtest.origin import Origin
from loadtest.scenario import Timeouts
from loadtest.workers.stream import Connection, Exchange

REQUEST = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
TOKEN = b'data: {"choices":[{"index":0,"text":"a","finish_reason":null}]}\n\n'
REST = (
    b'data: {"choices":[{"index":0,"text":"b","finish_reason":"length"}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'
    b"data: [DONE]\n\n"
)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"


def with_length(body: bytes) -> bytes:
    return HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body


GOOD = with_length(TOKEN + REST)
Play = Callable[[socket.socket, "Server"], None]


@dataclass(eq=False)
class Server:
    """Plays one script for each connection that comes; the last one is played again."""

    plays: Sequence[Play]
    connections: int = 0
    requests: int = 0
    released: threading.Event = field(default_factory=threading.Event)

    def read_request(self, peer: socket.socket) -> bool:
        seen = b""
        while b"\r\n\r\n" not in seen:
            piece = peer.recv(4096)
            if not piece:
                return False
            seen += piece
        self.requests += 1
        return True


@contextlib.contextmanager
def serving(*plays: Play) -> Iterator[tuple[Server, Origin]]:
    server = Server(plays=plays)
    listener = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def handle(peer: socket.socket, play: Play) -> None:
        with peer, contextlib.suppress(OSError):
            play(peer, server)

    def accept() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            play = plays[min(server.connections, len(plays) - 1)]
            server.connections += 1
            threads.append(threading.Thread(target=handle, args=(peer, play)))
            threads[-1].start()

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield server, Origin(scheme="http", host="127.0.0.1", port=listener.getsockname()[1])
    finally:
        server.released.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        acceptor.join()
        for thread in threads:
            thread.join()


def answering(*answers: bytes) -> Play:
    """Answers each request in turn, then closes."""

    def play(peer: socket.socket, server: Server) -> None:
        for answer in answers:
            if not server.read_request(peer):
                return
            peer.sendall(answer)

    return play


def hanging(before: bytes = b"") -> Play:
    """Sends `before` and then nothing more, until the test is over."""

    def play(peer: socket.socket, server: Server) -> None:
        server.read_request(peer)
        peer.sendall(before)
        server.released.wait()

    return play


def resetting(before: bytes = b"") -> Play:
    def play(peer: socket.socket, server: Server) -> None:
        server.read_request(peer)
        peer.sendall(before)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    return play


QUICK = Timeouts(connect_s=2.0, first_token_s=0.2, between_tokens_s=0.2, total_s=5.0)


def asked(origin: Origin, times: int = 1, timeouts: Timeouts = QUICK) -> list[Exchange]:
    connection = Connection(origin, timeouts)
    clock = time.perf_counter_ns
    try:
        return [connection.exchange(REQUEST, clock(), 2) for _ in range(times)]
    finally:
        connection.close()


def test_a_good_answer_gives_every_time_in_order() -> None:
    with serving(answering(GOOD)) as (_, origin):
        (exchange,) = asked(origin)
    reply = exchange.reply
    assert (exchange.outcome, exchange.error, reply.output_tokens) == ("ok", None, 2)
    times = [exchange.connected_ns, exchange.sent_ns, exchange.headers_ns, reply.first_token_ns]
    assert times == sorted(time for time in times if time is not None)


def test_a_connection_is_used_again() -> None:
    with serving(answering(GOOD, GOOD, GOOD)) as (server, origin):
        exchanges = asked(origin, times=3)
    assert [e.outcome for e in exchanges] == ["ok"] * 3
    assert [e.reused_connection for e in exchanges] == [False, True, True]
    assert server.connections == 1


def test_a_connection_the_server_wants_closed_is_not_used_again() -> None:
    closing = GOOD.replace(b"Content-Length", b"Connection: close\r\nContent-Length")
    with serving(answering(closing, closing)) as (server, origin):
        exchanges = asked(origin, times=2)
    assert [e.reused_connection for e in exchanges] == [False, False]
    assert server.connections == 2


def test_a_connection_closed_while_idle_is_tried_once_more_and_says_so() -> None:
    with serving(answering(GOOD)) as (server, origin):  # one answer a connection, then it closes
        exchanges = asked(origin, times=4)
    assert [e.outcome for e in exchanges] == ["ok"] * 4
    assert [e.retried for e in exchanges] == [False, True, True, True]
    assert (server.connections, server.requests) == (4, 4)


def test_a_fresh_connection_that_returns_nothing_is_not_tried_again() -> None:
    with serving(resetting()) as (server, origin):
        (exchange,) = asked(origin)
    assert (exchange.outcome, exchange.retried, server.requests) == ("reset_fresh", False, 1)
    assert exchange.error


def test_a_reset_in_the_middle_is_never_tried_again() -> None:
    with serving(answering(GOOD), resetting(HEAD + b"\r\n" + TOKEN)) as (server, origin):
        exchanges = asked(origin, times=2)
    assert exchanges[1].retried  # the first connection had closed
    assert exchanges[1].outcome in ("reset_midstream", "truncated")
    assert server.requests == 2


@pytest.mark.parametrize(
    ("play", "outcome"),
    [
        (hanging(), "stall_ttft"),
        (hanging(HEAD + b"\r\n"), "stall_ttft"),
        (hanging(HEAD + b"\r\n" + TOKEN), "stall_gap"),
        (answering(with_length(TOKEN + REST)[:-30]), "truncated"),
        (answering(HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"), "bad_payload"),
        (answering(b"SSH-2.0\r\n"), "bad_payload"),
        (
            answering(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n<ht>"),
            "bad_payload",
        ),
        (answering(b"HTTP/1.1 400 Bad\r\nContent-Length: 5\r\n\r\nwrong"), "http_4xx"),
        (answering(b"HTTP/1.1 429 Slow\r\nContent-Length: 0\r\n\r\n"), "http_429"),
        (answering(b"HTTP/1.1 503 Full\r\nContent-Length: 0\r\n\r\n"), "http_503_admission"),
        (answering(b"HTTP/1.1 500 Oops\r\nContent-Length: 3\r\n\r\nOOM"), "http_5xx"),
        (answering(HEAD + b"\r\n" + TOKEN + REST), "ok"),
    ],
)
def test_a_fault_is_an_outcome_and_never_an_error(play: Play, outcome: str) -> None:
    with serving(play) as (_, origin):
        (exchange,) = asked(origin)
    assert exchange.outcome == outcome
    assert (exchange.error is None) == (outcome == "ok"), "a fault without a text hides its cause"


def test_a_redirect_is_an_answer_and_goes_nowhere() -> None:
    moved = b"HTTP/1.1 307 Moved\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
    with serving(answering(moved)) as (server, origin):
        (exchange,) = asked(origin)
    assert (exchange.outcome, exchange.http_status, server.requests) == ("bad_payload", 307, 1)


def test_a_server_that_dribbles_is_given_up_at_the_deadline() -> None:
    def dribbling(peer: socket.socket, server: Server) -> None:
        server.read_request(peer)
        peer.sendall(HEAD + b"\r\n")
        while not server.released.wait(0.02):
            peer.sendall(TOKEN)

    limits = Timeouts(connect_s=2.0, first_token_s=1.0, between_tokens_s=1.0, total_s=0.3)
    with serving(dribbling) as (_, origin):
        (exchange,) = asked(origin, timeouts=limits)
    assert exchange.outcome == "deadline"
    assert exchange.reply.chunks > 2


def test_a_port_nobody_listens_on_is_refused() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        origin = Origin(scheme="http", host="127.0.0.1", port=probe.getsockname()[1])
    (exchange,) = asked(origin)
    assert exchange.outcome == "connect_refused"
    assert exchange.error is not None
    assert "ConnectionRefusedError" in exchange.error


def test_plain_http_where_tls_is_expected_is_a_tls_fault() -> None:
    with serving(lambda peer, _: peer.sendall(b"HTTP/1.1 400 Bad\r\n\r\n")) as (_, origin):
        (exchange,) = asked(Origin(scheme="https", host="127.0.0.1", port=origin.port))
    assert exchange.outcome == "tls"
