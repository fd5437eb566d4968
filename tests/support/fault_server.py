"""A server on loopback whose answers are scripts of bytes: cut, dripped, reset, hung up on or never ended."""

from __future__ import annotations

import contextlib
import random
import socket
import ssl
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from loadtest.origin import Origin

UNTRUSTED: Final = Path(__file__).parents[1] / "fixtures/tls/untrusted.pem"
ANY: Final = "*"
"""The scripts of every path that has none of its own."""


@dataclass(frozen=True, slots=True)
class Hang:
    """Nothing more is said, and the connection stays: until the client leaves, or the test is over."""


@dataclass(frozen=True, slots=True)
class Close:
    """FIN."""


@dataclass(frozen=True, slots=True)
class Reset:
    """RST: what was sent before may not arrive."""


@dataclass(frozen=True, slots=True)
class Drip:
    """The same piece again and again, until the client leaves or the test is over."""

    piece: bytes
    every_s: float


@dataclass(frozen=True, slots=True)
class Wait:
    """A pause that ends when so much time has passed, or the test is over."""

    for_s: float


@dataclass(frozen=True, slots=True)
class Live:
    """Bytes that tell of the server as it is now."""

    of: Callable[[FaultServer], bytes]


Step = bytes | Hang | Close | Reset | Drip | Wait | Live
Script = Sequence[Step]


class _Left(Exception):  # noqa: N818  (reads as what happened)
    """This connection is over."""


@dataclass(eq=False)
class FaultServer:
    """Answers the n-th request of a path with its n-th script; the last one is played again."""

    scripts: Mapping[str, Sequence[Script]]
    requests: list[tuple[str, bytes]] = field(default_factory=list)
    """Path and every byte of each request, as they came."""
    at_work: Counter[str] = field(default_factory=Counter)
    """How many requests of a path are being answered."""
    connections: int = 0
    over: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def asked(self, path: str) -> int:
        """How many requests for a path came."""
        return sum(asked == path for asked, _ in self.requests)

    def talk(self, peer: socket.socket) -> None:
        """Serves one connection to its end."""
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError, _Left):
            while (request := read_request(peer)) is not None:
                name = self.name_of(*request)
                with self._answering(name):
                    for step in self._script_of(name, request[1]):
                        self._do(step, peer)

    def name_of(self, path: str, content: bytes) -> str:
        """By what a request finds its scripts, and is counted."""
        return path

    @contextlib.contextmanager
    def _answering(self, name: str) -> Iterator[None]:
        with self._lock:
            self.at_work[name] += 1
        try:
            yield
        finally:
            with self._lock:
                self.at_work[name] -= 1

    def _script_of(self, path: str, content: bytes) -> Script:
        with self._lock:
            scripts = self.scripts.get(path) or self.scripts[ANY]
            script = scripts[min(self.asked(path), len(scripts) - 1)]
            self.requests.append((path, content))
        return script

    def _do(self, step: Step, peer: socket.socket) -> None:
        match step:
            case bytes():
                peer.sendall(step)
            case Hang():
                self._wait_for_the_end(peer)
                raise _Left
            case Close():
                raise _Left
            case Reset():
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                raise _Left
            case Drip(piece, every_s):
                while not self.over.wait(every_s):
                    peer.sendall(piece)
                raise _Left
            case Wait(for_s):
                self.over.wait(for_s)
            case Live(of):
                peer.sendall(of(self))

    def _wait_for_the_end(self, peer: socket.socket) -> None:
        peer.settimeout(0.05)
        while not self.over.is_set():
            with contextlib.suppress(TimeoutError):
                if not peer.recv(4096):
                    return


def read_request(peer: socket.socket) -> tuple[str, bytes] | None:
    """Path and bytes of the next request; None when the client has closed."""
    seen = b""
    while b"\r\n\r\n" not in seen:
        piece = peer.recv(65_536)
        if not piece:
            return None
        seen += piece
    head, _, body = seen.partition(b"\r\n\r\n")
    _, _, length = head.lower().partition(b"content-length:")
    missing = int(length.partition(b"\r\n")[0] or b"0") - len(body)
    while missing > 0:
        piece = peer.recv(65_536)
        if not piece:
            return None
        seen += piece
        missing -= len(piece)
    return head.split(b" ", 2)[1].decode("latin-1"), seen


@contextlib.contextmanager
def listening(talk_to: FaultServer, *, tls: bool = False) -> Iterator[Origin]:
    """Serves until the block ends; then every connection is closed and every thread has ended."""
    context = None
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(UNTRUSTED)
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    threads: list[threading.Thread] = []

    def handle(peer: socket.socket) -> None:
        with contextlib.suppress(OSError), peer:
            if context is None:
                talk_to.talk(peer)
            else:
                with context.wrap_socket(peer, server_side=True) as secret:
                    talk_to.talk(secret)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = listener.accept()
                talk_to.connections += 1
                peer.settimeout(20.0)  # no test lasts so long
                threads.append(threading.Thread(target=handle, args=(peer,), daemon=True))
                threads[-1].start()

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield Origin(scheme="https" if tls else "http", host="127.0.0.1", port=listener.getsockname()[1])
    finally:
        talk_to.over.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        acceptor.join()
        for thread in threads:
            thread.join()


@contextlib.contextmanager
def serving(*scripts: Script, tls: bool = False, **pages: Script) -> Iterator[tuple[FaultServer, Origin]]:
    """The usual server of a test: these scripts, in order, whatever is asked."""
    server = FaultServer({ANY: scripts})
    with listening(server, tls=tls) as origin:
        yield server, origin


@contextlib.contextmanager
def racing(answer: bytes, seed: int) -> Iterator[tuple[list[int], Origin]]:
    """A server that keeps a connection for a random number of answers and then closes it while it is idle.

    Half of the time it closes at once after an answer, half of the time when the next request is under way
    already, unread. Yields how many requests it answered, as the only number of a list.
    """
    chance, answered = random.Random(seed), [0]

    class Racer(FaultServer):
        def talk(self, peer: socket.socket) -> None:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for _ in range(chance.randint(1, 8)):
                if read_request(peer) is None:
                    return
                peer.sendall(answer)
                answered[0] += 1
            if chance.random() < 0.5:
                peer.recv(1, socket.MSG_PEEK)  # closed with bytes unread: the client sees RST

    with listening(Racer({})) as origin:
        yield answered, origin


def refusing() -> Origin:
    """An address nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return Origin(scheme="http", host="127.0.0.1", port=probe.getsockname()[1])


@contextlib.contextmanager
def deaf() -> Iterator[Origin]:
    """A listener whose queue is full: the kernel drops every further SYN."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            queued = stack.enter_context(socket.socket())
            queued.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                queued.connect(listener.getsockname())
        yield Origin(scheme="http", host="127.0.0.1", port=listener.getsockname()[1])


STREAM_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
)
LAST_CHUNK: Final = b"0\r\n\r\n"


def chunk(body: bytes) -> bytes:
    """One HTTP chunk."""
    return b"%x\r\n%s\r\n" % (len(body), body)


def event(data: str) -> bytes:
    """One server-sent event."""
    return f"data: {data}\n\n".encode()


def events(*data: str) -> bytes:
    """Events, each in an HTTP chunk of its own, the way uvicorn sends them."""
    return b"".join(chunk(event(one)) for one in data)


def plain(status: str, body: bytes = b"", kind: str = "application/json", *headers: str) -> bytes:
    """An answer that is no stream: `plain("429 Too Many Requests", b"{}")`."""
    lines = (f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *headers, "", "")
    return "\r\n".join(lines).encode() + body
