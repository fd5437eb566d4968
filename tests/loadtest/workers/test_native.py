"""The reader in C leaves the record that decoding leaves, from real sockets, however their bytes are cut."""

from __future__ import annotations

import bisect
import contextlib
import gc
import itertools
import os
import random
import struct
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import gevent
import pytest
from gevent import socket
from used_again import pair_at

from loadtest.native import PURE_PYTHON_VARIABLE
from loadtest.workers.attempt import ANSWER_BYTES_MAX, Attempt, Fault
from loadtest.workers.ear import ear
from loadtest.workers.native import IS_NATIVE
from loadtest.workers.wire import SocketWire

if not IS_NATIVE:
    pytest.skip("the reader in C was not built here, or is turned off", allow_module_level=True)

from loadtest.workers._reader import Reader, Reading

KEPT_BYTES_MAX = 2**20
"""Of one stream, as _reader_thread.h has it."""
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
    """An attempt at one end of a socket, heard by the thread in C."""

    def __init__(self, reader: Reader, attempt: Attempt | None = None) -> None:
        self.mine, self.peer = socket.socketpair()
        self.attempt = attempt or Attempt(reused=False)
        self.woken: list[object] = []
        self.reading = Reading(reader, self.mine.fileno())
        self.reading.listen(self.attempt.take, self.wake)

    def wake(self, ended: object) -> None:
        self.woken.append(ended)
        self.reading.stop()

    def said(self, answer: list[bytes], turn: int, ends_well: bool) -> bool:
        """Whether there was still something to say in this turn, and somebody to hear it."""
        if self.woken or turn > len(answer) - (not ends_well):
            return False
        if turn < len(answer):
            self.peer.sendall(answer[turn])
        else:
            self.peer.shutdown(socket.SHUT_WR)
        return True

    def listen_again(self) -> None:
        """As when a limit has passed that tokens had moved."""
        if self.woken:
            return
        try:
            if self.reading.stop():
                self.woken.append(None)
                return
        except Fault as fault:
            self.woken.append(fault)
            return
        self.reading.listen(self.attempt.take, self.wake)

    def close(self) -> None:
        self.reading.stop()
        self.mine.close()
        self.peer.close()


@pytest.fixture
def reader() -> Reader:
    return Reader()


@pytest.fixture
def listener(reader: Reader) -> Iterator[Listener]:
    one = Listener(reader)
    yield one
    one.close()


Wired = tuple[SocketWire, socket.socket, Reader]


@pytest.fixture
def wired() -> Iterator[Wired]:
    """A wire, its peer, and the thread that reads it."""
    mine, peer = socket.socketpair()
    thread = ear().reader
    assert thread is not None
    yield (wire := SocketWire(mine)), peer, thread
    wire.close()
    peer.close()


def until(condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end_s, "it never came"
        time.sleep(0)


def said(reader: Reader, one: Listener, data: bytes) -> None:
    """The thread has read it; Python has not looked."""
    reads = reader.reads
    one.peer.sendall(data)
    until(lambda: reader.reads > reads)


def in_turns(found: tuple[object, ...], begun_ns: list[int]) -> tuple[object, ...]:
    """Each time as the number of the turn in which it was."""

    def turn(value: object) -> object:
        if isinstance(value, list):
            return [turn(one) for one in value]
        is_time = isinstance(value, int) and value >= begun_ns[0]
        return bisect.bisect_right(begun_ns, value) - 1 if is_time else value  # type: ignore[type-var]

    return tuple(turn(value) for value in found)


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
def test_many_sockets_read_by_the_thread_leave_the_records_of_decoding(seed: int, reader: Reader) -> None:
    """However late Python looks, and whether or not somebody asks for the tokens meanwhile."""
    dice = random.Random(seed)
    answers = [any_answer(dice) for _ in range(12)]
    ends = [dice.random() < 0.7 for _ in answers]
    listeners = [Listener(reader) for _ in answers]
    lazy = dice.random()
    begun_ns, reads = [], 0
    for turn in range(max(map(len, answers)) + 1):
        begun_ns.append(time.perf_counter_ns())
        for answer, ends_well, one in zip(answers, ends, listeners, strict=True):
            reads += one.said(answer, turn, ends_well)
        until(lambda reads=reads: reader.reads == reads)  # type: ignore[misc]
        if dice.random() > lazy:
            reader.hear()
        if dice.random() < 0.2:
            dice.choice(listeners).attempt.catch_up()
        if dice.random() < 0.1:
            dice.choice(listeners).listen_again()
    reader.hear()
    for answer, ends_well, one in zip(answers, ends, listeners, strict=True):
        fault = one.woken[0] if one.woken and isinstance(one.woken[0], Fault) else None
        one.attempt.catch_up()
        found = in_turns(record(one.attempt, fault), begun_ns)
        assert found == decoded([*answer, b""] if ends_well else answer)
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


def test_an_answer_of_too_many_bytes_is_refused_while_its_tokens_are_recognised(
    reader: Reader, listener: Listener
) -> None:
    attempt, read = listener.attempt, chunk(token(b"a"))
    said(reader, listener, HEAD + read)
    listener.reading.stop()
    attempt.read_bytes = ANSWER_BYTES_MAX - len(read)
    listener.reading.listen(attempt.take, listener.wake)
    said(reader, listener, read)
    reader.hear()
    assert not listener.woken
    said(reader, listener, read)
    reader.hear()
    [fault] = listener.woken
    assert isinstance(fault, Fault)
    assert "more than" in str(fault)
    assert attempt.reply.chunks == 2


def test_a_token_is_dated_while_python_looks_elsewhere_and_its_clock_is_ours(
    reader: Reader, listener: Listener
) -> None:
    begun_ns = time.perf_counter_ns()
    said(reader, listener, HEAD + chunk(token(b"first")))
    read_ns = time.perf_counter_ns()
    reader.hear()
    said(reader, listener, chunk(token(b"a")) * 2)
    again_ns = time.perf_counter_ns()
    assert listener.attempt.reply.chunks == 1
    listener.attempt.catch_up()
    first_ns, second_ns, third_ns = listener.attempt.reply.token_ns
    assert begun_ns <= first_ns <= read_ns <= second_ns == third_ns <= again_ns
    assert listener.attempt.reply.coalesced_reads == 1


def test_a_read_of_more_than_the_buffer_is_several(reader: Reader, listener: Listener) -> None:
    read = chunk(token(b"a")) * 2000
    said(reader, listener, HEAD + chunk(token(b"first")))
    reader.hear()
    sent = gevent.spawn(listener.peer.sendall, read)

    def is_all() -> bool:
        gevent.sleep(0)
        reader.hear()
        listener.attempt.catch_up()
        return listener.attempt.reply.chunks == 2001

    until(is_all)
    sent.join()


def test_what_python_has_not_looked_at_is_bounded_and_the_rest_comes_after_it(reader: Reader) -> None:
    class All(Attempt):
        heard = b""

        def take(self, data: bytes, at_ns: int) -> bool:
            self.heard += data
            return not data

    one = Listener(reader, answer := All(reused=False))
    whole = random.Random(1).randbytes(5 * KEPT_BYTES_MAX)
    sent = gevent.spawn(lambda: (one.peer.sendall(whole), one.peer.shutdown(socket.SHUT_WR)))
    reads, since_s = 0, time.monotonic()
    while reads <= KEPT_BYTES_MAX / 65_536 or time.monotonic() < since_s + 0.2:  # until no more is read
        gevent.sleep(0)
        if reader.reads != reads:
            reads, since_s = reader.reads, time.monotonic()
    assert not sent.dead, "its peer must wait"
    assert not answer.heard
    reader.hear()
    assert len(answer.heard) > 0.9 * KEPT_BYTES_MAX

    def has_ended() -> bool:
        gevent.sleep(0)
        reader.hear()
        return bool(one.woken)

    until(has_ended)
    assert answer.heard == whole
    one.close()


def test_an_end_that_was_read_in_time_is_no_timeout(wired: Wired) -> None:
    wire, peer, thread = wired
    attempt = Attempt(reused=False)

    def speak_and_block_the_loop() -> None:
        end_s, reads = time.monotonic() + 0.03, thread.reads
        peer.sendall(HEAD + chunk(token(b"a")) + chunk(b"data: [DONE]\n\n") + END)
        until(lambda: thread.reads > reads and time.monotonic() > end_s)

    gevent.spawn(speak_and_block_the_loop)
    assert wire.listen(attempt.take, 0.02)
    assert attempt.reply.done


def test_one_that_is_killed_has_every_token_that_was_read(wired: Wired) -> None:
    wire, peer, thread = wired
    attempt = Attempt(reused=False)
    heard = gevent.spawn(wire.listen, attempt.take, 30.0)
    gevent.sleep(0)
    # the last two are what only Python knows: half a chunk each
    for data in (HEAD + chunk(token(b"a")), chunk(token(b"a")), chunk(token(b"a")), b"5\r\nda", b"ta:\r\n"):
        reads = thread.reads
        peer.sendall(data)
        until(lambda reads=reads: thread.reads > reads)  # type: ignore[misc]
        if data.startswith(HEAD):
            gevent.sleep(0)
    heard.kill()
    assert attempt.reply.chunks == 3
    assert attempt.read_bytes == len(HEAD) + 3 * len(chunk(token(b"a"))) + 10


def test_what_is_no_error_of_an_answer_is_not_given_to_one(reader: Reader) -> None:
    class Stopping(Attempt):
        count = 0

        def take(self, data: bytes, at_ns: int) -> bool:
            self.count += 1
            if self.count == 1:
                raise KeyboardInterrupt
            return True

    one = Listener(reader, Stopping(reused=False))
    said(reader, one, b"x")
    with pytest.raises(KeyboardInterrupt):
        reader.hear()
    assert not one.woken
    said(reader, one, b"x")
    reader.hear()
    assert one.woken == [None], "it is listened to still"
    one.close()


def test_what_came_after_enough_is_the_next_listeners(reader: Reader) -> None:
    mine, peer = socket.socketpair()
    reading, heard, woken = Reading(reader, mine.fileno()), list[bytes](), list[object]()

    def take(data: bytes, at_ns: int) -> bool:
        heard.append(data)
        return True

    def wake(ended: object) -> None:
        woken.append(ended)
        reading.stop()

    reading.listen(take, wake)
    for count, data in enumerate((b"a", b"b", b"c"), start=1):
        peer.sendall(data)
        until(lambda count=count: reader.reads == count)  # type: ignore[misc]
    peer.close()
    until(lambda: reader.reads == 4)
    for count, expected in enumerate(([b"a"], [b"a", b"b"], [b"a", b"b", b"c"], [b"a", b"b", b"c", b""]), 1):
        reader.hear()
        assert heard == expected
        assert len(woken) == count
        reading.listen(take, wake)
    reading.stop()
    mine.close()


def test_nothing_is_read_of_a_stream_that_was_stopped(reader: Reader) -> None:
    """Its number may be another's at once: what that one gets is its own."""
    for turn in range(300):
        one = Listener(reader)
        one.peer.sendall(b"%d" % turn)  # maybe read, maybe not
        one.reading.stop()
        number = one.mine.fileno()
        one.mine.close()
        mine, peer = pair_at(number)
        peer.sendall(b"new")
        assert mine.recv(100) == b"new"
        for end in (mine, peer, one.peer):
            end.close()


def test_a_thread_that_is_no_longer_wanted_ends() -> None:
    def threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    gc.collect()
    before = threads()
    one = Listener(Reader())
    assert threads() == before + 1
    one.close()
    del one
    gc.collect()
    assert threads() == before


def test_a_fork_reads_with_a_thread_of_its_own() -> None:
    done = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "True True True\n"), done.stderr


FORKS = """
import gc, os
from gevent import socket
from loadtest.workers.wire import SocketWire

def heard(wire, peer):
    peer.sendall(b"x")
    return wire.listen(lambda data, _: data == b"x", 20.0)

mine, peer = socket.socketpair()
wire = SocketWire(mine)
before = heard(wire, peer)
child = os.fork()
if child == 0:
    again = heard(*(make(one) for make, one in zip((SocketWire, lambda one: one), socket.socketpair())))
    del wire
    gc.collect()
    os._exit(0 if again else 1)
print(before, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, heard(wire, peer))
"""


def test_what_an_attempt_and_its_reading_hold_is_given_back(reader: Reader) -> None:
    gc.collect()
    gc.disable()
    try:
        one = Listener(reader)
        said(reader, one, HEAD + chunk(token(b"first")))
        reader.hear()
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
