"""The reader in C leaves the record that decoding leaves, from real sockets, however their bytes are cut."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import random
import struct
import subprocess
import sys
import weakref
from collections.abc import Iterator

import gevent
import pytest
from gevent import socket

from loadtest.native import PURE_PYTHON_VARIABLE
from loadtest.workers.attempt import ANSWER_BYTES_MAX, Attempt, Fault
from loadtest.workers.native import IS_NATIVE
from loadtest.workers.wire import SocketWire

if not IS_NATIVE:
    pytest.skip("the reader in C was not built here, or is turned off", allow_module_level=True)

from loadtest.workers._reader import Reading

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"
TEXTS = [
    " word",
    " a",
    "é",
    "漢字",
    "\U0001f600",
    '\\"',
    "\\n",
    "\\u00e9",
    "\\u00zz",
    "\\x",
    "",
    "\x7f",
    "\x01",
    ".",
]
TORN = [
    b"\xc3",
    b"\xc0\x80",
    b"\xed\xa0\x80",
    b"\xe0\x9f\xbf",
    b"\xf4\x90\x80\x80",
    b"\xf0\x8f\x80\x80",
    b"\xff",
    b'"',
]


def chunk(body: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(body), body)


def token(text: bytes, stream: int = 0) -> bytes:
    return b'data: {"id":"%d","choices":[{"index":0,"delta":{"content":"%s"}}]}\n\n' % (stream, text)


def record(attempt: Attempt, fault: BaseException | None) -> tuple[object, ...]:
    reply, reader = attempt.reply, attempt.reader
    ended = str(fault), attempt.headers_ns, attempt.stopped_ns, attempt.clean_end, attempt.read_bytes
    said = reply.done, reply.error, reply.unreadable, reply.finish_reason, reply.first_output_ns
    return *ended, *said, reader.complete, reply.coalesced_reads, reply.token_ns.tolist()


class Listener:
    """An attempt at one end of a socket, heard by the reader in C; its clock counts the reads."""

    def __init__(self) -> None:
        self.mine, self.peer = socket.socketpair()
        self.mine.setblocking(False)
        self.attempt = Attempt(reused=False)
        self.woken: list[object] = []
        clock = itertools.count()
        self.read = Reading(self.mine.fileno(), self.attempt.take, lambda: next(clock), self.woken.append)

    def record(self) -> tuple[object, ...]:
        return record(self.attempt, self.woken[0] if self.woken and self.woken[0] else None)

    def close(self) -> None:
        self.mine.close()
        self.peer.close()


@pytest.fixture
def listener() -> Iterator[Listener]:
    one = Listener()
    yield one
    one.close()


def decoded(pieces: list[bytes]) -> tuple[object, ...]:
    """The record of these reads when each event of them is decoded."""
    attempt = Attempt(reused=False, scans=False)
    for at_ns, piece in enumerate(pieces):
        try:
            if attempt.take(piece, at_ns):
                break
        except Fault as fault:
            return record(attempt, fault)
    return record(attempt, None)


def any_answer(dice: random.Random) -> list[bytes]:
    """Reads of one answer: tokens and what is nearly one, whole, half and several at once, then an end."""
    chunks = [chunk(token(b"first"))]
    for _ in range(dice.randrange(30)):
        text = dice.choice(TORN) if dice.random() < 0.1 else dice.choice(TEXTS).encode()
        event = token(text * dice.choice([1, 1, 1, 2, 300]))
        odd = dice.randrange(25)
        body = {0: event * 2, 1: b": ping\n\n", 2: event[:-1], 3: event.replace(b"index", b"yndex")}.get(
            odd, event
        )
        head = {4: b"%X\r\n", 5: b"0%x\r\n", 6: b"%x;a=b\r\n", 7: b"%x\n"}.get(odd, b"%x\r\n")
        size = len(body) + (1 if odd == 8 else -1 if odd == 9 else 0)
        chunks.append(head % size + body + b"\r\n")
    whole = HEAD + b"".join(chunks) + dice.choice([chunk(b"data: [DONE]\n\n") + END, END, b"", b"zz\r\n"])
    edges = set(itertools.accumulate([len(HEAD), *map(len, chunks)]))
    edges = {edge for edge in edges if dice.random() < 0.8}
    edges |= {dice.randrange(len(whole)) for _ in range(dice.choice([0, 0, 1, 4]))}
    cuts = sorted(edges | {0, len(whole)})
    return [whole[a:b] for a, b in itertools.pairwise(cuts) if a < b]


@pytest.mark.parametrize("seed", range(40))
def test_many_sockets_heard_in_one_turn_leave_the_records_of_decoding(seed: int) -> None:
    dice = random.Random(seed)
    answers = [any_answer(dice) for _ in range(12)]
    ends = [dice.random() < 0.7 for _ in answers]
    listeners = [Listener() for _ in answers]
    for turn in range(max(map(len, answers)) + 1):
        spoken = []
        for answer, ends_well, one in zip(answers, ends, listeners, strict=True):
            if one.woken:
                continue  # its attempt has ended: nobody hears it any more
            if turn < len(answer):
                one.peer.sendall(answer[turn])
                spoken.append(one)
            elif turn == len(answer) and ends_well:
                one.peer.shutdown(socket.SHUT_WR)
                spoken.append(one)
        for one in spoken:
            one.read()
        idle = listeners[turn % len(listeners)]
        if not idle.woken:
            idle.read()  # nothing is there, and that is no read
    for answer, ends_well, one in zip(answers, ends, listeners, strict=True):
        assert one.record() == decoded([*answer, b""] if ends_well else answer)
        one.close()


@pytest.mark.parametrize("text", [*map(str.encode, TEXTS), *TORN, b"a" * 40_000])
@pytest.mark.parametrize("count", [1, 3])
def test_what_a_text_may_be_is_what_the_pattern_in_python_takes(text: bytes, count: int) -> None:
    """Directly: C recognises exactly the reads that EventForm does."""
    attempt = Seen()
    attempt.take(HEAD + chunk(token(b"first")), 0)
    form = attempt.steady
    assert form is not None
    read = chunk(token(text)) * count
    known = form.tokens_of_read(read)
    attempt.seen.clear()
    attempt.take(read, 1)
    assert bool(attempt.seen) == (known == 0)


@pytest.mark.parametrize(
    "odd",
    [
        chunk(token(b"a"))[:-2] + b"xx",
        chunk(token(b"a"))[:-1],
        chunk(token(b"a")) + b"1",
        b"%x\r\n" % (len(token(b"a")) + 1) + token(b"a") + b"\r\n",
        b"%x\n\n" % len(token(b"a")) + token(b"a") + b"\r\n",
        b"fffffffff\r\n" + token(b"a") + b"\r\n",
        b"ffffffff\r\n" + token(b"a") + b"\r\n",
        b"\r\n" + token(b"a") + b"\r\n",
        END,
    ],
)
@pytest.mark.parametrize("before", [b"", chunk(token(b"b"))])
def test_a_read_that_is_not_whole_chunks_is_not_recognised(odd: bytes, before: bytes) -> None:
    attempt = Seen()
    attempt.take(HEAD + chunk(token(b"first")), 0)
    attempt.seen.clear()
    with contextlib.suppress(Fault):
        attempt.take(before + odd, 1)
    assert attempt.seen == [before + odd]


class Seen(Attempt):
    def __init__(self) -> None:
        super().__init__(reused=False)
        self.seen: list[bytes] = []

    def _take_other(self, data: bytes, at_ns: int) -> bool:
        self.seen.append(data)
        return super()._take_other(data, at_ns)


def test_a_broken_connection_wakes_its_greenlet_with_the_systems_error() -> None:
    server = socket.create_server(("127.0.0.1", 0))
    mine = socket.create_connection(server.getsockname())
    peer, _ = server.accept()
    attempt, wire = Attempt(reused=False), SocketWire(mine)
    peer.sendall(HEAD + chunk(token(b"first")))
    heard = gevent.spawn(wire.listen, attempt.take, 5.0)
    while not attempt.reply.chunks:
        gevent.sleep(0.001)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()
    with pytest.raises(ConnectionResetError):
        heard.get(timeout=5.0)
    wire.close()
    server.close()


def test_an_answer_of_too_many_bytes_is_refused_while_its_tokens_are_recognised(listener: Listener) -> None:
    read = chunk(token(b"a"))
    for data in (HEAD + read, read):
        listener.peer.sendall(data)
        listener.read()
    listener.attempt.read_bytes = ANSWER_BYTES_MAX - len(read)
    for _ in range(2):
        listener.peer.sendall(read)
        listener.read()
    [fault] = listener.woken
    assert isinstance(fault, Fault)
    assert "more than" in str(fault)
    assert listener.attempt.reply.token_ns.tolist() == [0, 1, 2]


def test_a_read_of_more_than_the_buffer_is_several(listener: Listener) -> None:
    read = chunk(token(b"a")) * 2000
    listener.peer.sendall(HEAD + chunk(token(b"first")))
    listener.read()
    said = gevent.spawn(listener.peer.sendall, read)
    while listener.attempt.read_bytes < len(HEAD + chunk(token(b"first")) + read):
        gevent.sleep(0)
        listener.read()
    said.join()
    assert listener.attempt.reply.chunks == 2001


def test_what_is_no_error_of_an_answer_is_not_given_to_one() -> None:
    mine, peer = socket.socketpair()

    def stop(data: bytes, at_ns: int) -> bool:
        raise KeyboardInterrupt

    peer.sendall(b"x")
    woken: list[object] = []
    with pytest.raises(KeyboardInterrupt):
        Reading(mine.fileno(), stop, lambda: 1, woken.append)()
    assert not woken
    mine.close()
    peer.close()


def test_an_attempt_that_overrides_take_is_asked_itself() -> None:
    class Own(Attempt):
        def take(self, data: bytes, at_ns: int) -> bool:
            return data == b"x"

    mine, peer = os.pipe()
    os.write(peer, b"x")
    woken: list[object] = []
    Reading(mine, Own(reused=False).take, lambda: 1, woken.append)()
    assert woken == [None]
    os.close(mine)
    os.close(peer)


def test_what_an_attempt_and_its_reading_hold_is_given_back() -> None:
    gc.collect()
    gc.disable()
    try:
        one = Listener()
        one.peer.sendall(HEAD + chunk(token(b"first")))
        one.read()
        one.close()
        gone = weakref.ref(one)
        del one
        assert gone() is None, "without the collector: a listener is in no cycle"
    finally:
        gc.enable()


def test_the_variable_turns_it_off() -> None:
    asked = "from loadtest.workers.native import IS_NATIVE; print(IS_NATIVE)"
    environ = {**os.environ, PURE_PYTHON_VARIABLE: "1"}
    done = subprocess.run(
        [sys.executable, "-c", asked], env=environ, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "False\n", done.stderr
