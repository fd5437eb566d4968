"""How long a server keeps an idle connection is seen by trying it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from loadtest.audit import Level
from loadtest.conductor.audit.keep_alive import idle_survived, keep_alive_check
from loadtest.origin import Origin, parse_origin

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
CLOSED = ANSWER.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")


@contextmanager
def closing_after(idle_s: float, answer: bytes = ANSWER) -> Iterator[Origin]:
    """Answers every request, and closes a connection that was idle for so long."""
    listener = socket.create_server(("127.0.0.1", 0))

    def talk(peer: socket.socket) -> None:
        peer.settimeout(idle_s)
        with peer:
            try:
                while peer.recv(65_536):
                    peer.sendall(answer)
            except OSError:
                return

    def accept() -> None:
        try:
            while True:
                threading.Thread(target=talk, args=(listener.accept()[0],), daemon=True).start()
        except OSError:
            return

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield parse_origin(f"http://127.0.0.1:{listener.getsockname()[1]}")
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def test_a_connection_that_idles_beyond_the_servers_patience_is_found_closed() -> None:
    with closing_after(0.8) as origin:
        assert idle_survived(origin, None, (0.0, 1.6)) == {0.0: True, 1.6: False}


def test_a_server_that_closes_after_each_answer_keeps_nothing() -> None:
    with closing_after(5.0, CLOSED) as origin:
        assert idle_survived(origin, None, (0.0,)) == {0.0: False}


def test_a_server_that_is_not_there_says_nothing_of_idling() -> None:
    with closing_after(5.0) as origin:
        gone = origin
    assert idle_survived(gone, None, (0.0,)) == {0.0: None}


@pytest.mark.parametrize(
    ("survived", "level", "said"),
    [
        ({1.0: True, 2.0: True, 7.0: True}, "ok", "live for 7 s and more"),
        ({1.0: True, 4.0: True, 5.0: False, 6.0: False}, "ok", "closed within 5 s, lives for 4 s"),
        ({1.0: True, 2.0: False, 3.0: False}, "amber", "closed within 2 s"),
        ({1.0: False, 2.0: False}, "amber", "closed within 1 s"),
        ({1.0: None, 2.0: None}, "skipped", "no connection answered"),
    ],
)
def test_connections_must_outlive_the_time_they_are_reused_for(
    survived: dict[float, bool | None], level: Level, said: str
) -> None:
    check = keep_alive_check(survived)
    assert check.level == level
    assert said in check.said
    assert (check.fix != "") == (level == "amber")
