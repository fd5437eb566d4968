"""python -m loadtest.workers.echo: how many chunks a second this client's own reader takes on this host.

A child sends tokens to many streams over loopback, one chunk each in turn, and never runs more than two
rounds ahead: so the reader is always busy, and nearly every chunk is a read of its own as with a real server.
Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import signal
import socket
import sys
import time
from typing import Final

import gevent

from loadtest.origin import parse_origin
from loadtest.scenario import Timeouts
from loadtest.workers.dial import dial
from loadtest.workers.ear import ear
from loadtest.workers.stream import Connection
from loadtest.workers.wire import SocketWire, Take

ROUNDS_AHEAD: Final = 2
REQUEST: Final = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n\r\n"
HEAD: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
    b"Connection: close\r\n\r\n"
)


def _chunk(data: str) -> bytes:
    event = f"data: {data}\n\n".encode()
    return b"%x\r\n%s\r\n" % (len(event), event)


def _token(text: str, finish: str) -> str:
    return (
        '{"id":"cmpl-2f1b7a6c0d9e4c5f","object":"text_completion","created":1795236677,"model":"echo",'
        f'"choices":[{{"index":0,"text":"{text}","logprobs":null,"finish_reason":{finish},"stop_reason":null}}]}}'
    )


TOKEN: Final = _chunk(_token(" word", "null"))
LAST: Final = _chunk(_token(" word", '"length"')) + _chunk("[DONE]") + b"0\r\n\r\n"


def serve(listener: socket.socket, streams: int, echo_s: float, rounds_read: int) -> None:
    """In the child. One byte through `rounds_read` allows one more round."""
    peers = []
    for _ in range(streams):
        peer, _ = listener.accept()
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peers.append(peer)
    for peer in peers:
        heard = b""
        while not heard.endswith(b"\r\n\r\n"):
            heard += peer.recv(65_536)
        peer.sendall(HEAD)
    allowed, end_s = ROUNDS_AHEAD, time.monotonic() + echo_s
    while time.monotonic() < end_s:
        for peer in peers:
            peer.sendall(TOKEN)
        allowed -= 1
        while allowed <= 0:
            allowed += len(os.read(rounds_read, 4096)) or ROUNDS_AHEAD
    for peer in peers:
        peer.sendall(LAST)
        peer.close()


class Tally:
    """Counts reads, and tells the sender whenever a round of them is through.

    The reader in C does so itself: a listener in between would see reads that are no longer given to Python.
    """

    def __init__(self, streams: int, rounds_read: int) -> None:
        self._reads = 0
        self._streams = streams
        self._rounds_read = rounds_read
        self._reader = ear().reader
        if self._reader is not None:
            self._reader.tell(rounds_read, streams)

    @property
    def reads(self) -> int:
        return self._reads if self._reader is None else self._reader.reads

    def counted(self, take: Take) -> Take:
        if self._reader is not None:
            return take

        def counting(data: bytes, at_ns: int) -> bool:
            self._reads += 1
            if not self._reads % self._streams:
                with contextlib.suppress(BrokenPipeError):  # it has sent its last round
                    os.write(self._rounds_read, b".")
            return take(data, at_ns)

        return counting


class CountedWire:
    """A socket's wire whose reads are counted."""

    def __init__(self, wire: SocketWire, tally: Tally) -> None:
        self._wire = wire
        self._tally = tally
        self.send = wire.send
        self.close = wire.close

    def listen(self, take: Take, within_s: float) -> bool:
        return self._wire.listen(self._tally.counted(take), within_s)


def measure(port: int, streams: int, echo_s: float, rounds_read: int) -> dict[str, float]:
    """Reads every stream to its end. Raises AssertionError when one of them broke."""
    tally = Tally(streams, rounds_read)
    origin, limits = parse_origin(f"http://127.0.0.1:{port}"), Timeouts(first_token_s=echo_s + 10)
    connections = [
        Connection(origin, limits, dial=lambda origin, limit_s: CountedWire(dial(origin, limit_s), tally))
        for _ in range(streams)
    ]
    for connection in connections:
        connection.open()
    start_ns, cpu_s = time.perf_counter_ns(), time.process_time()
    asked = [gevent.spawn(connection.exchange, REQUEST, start_ns, 1) for connection in connections]
    done = [one.get() for one in gevent.joinall(asked)]
    cpu_s = time.process_time() - cpu_s
    faults = {f"{one.outcome}: {one.error}" for one in done if one.outcome != "ok"}
    assert not faults, faults
    token_ns = [one.reply.token_ns for one in done]
    chunks = sum(map(len, token_ns))
    seconds = (max(ns[-1] for ns in token_ns) - min(ns[0] for ns in token_ns)) / 1e9
    return {
        "chunks_per_cpu_s": chunks / cpu_s,
        "chunks_per_s": chunks / seconds,
        "streams": streams,
        "echo_s": seconds,
        "chunks_per_read": chunks / tally.reads,
    }


def allow_files(count: int) -> None:
    """Raises this process's limit of open files as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count if hard < 0 else min(count, hard), hard))


def main() -> int:
    """0 with the figures on stdout; 1 when the trial broke, with why on stderr."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.workers.echo", description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--streams", type=int, default=200)
    options = parser.parse_args()
    allow_files(2 * options.streams)
    listener = socket.create_server(("127.0.0.1", 0), backlog=options.streams)
    rounds_out, rounds_in = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(rounds_in)
        with contextlib.suppress(OSError):  # the reader has given up
            serve(listener, options.streams, options.seconds, rounds_out)
        os._exit(0)
    os.close(rounds_out)
    try:
        figures = measure(listener.getsockname()[1], options.streams, options.seconds, rounds_in)
    except (AssertionError, OSError) as error:
        print(f"echo: {error}", file=sys.stderr)
        return 1
    finally:
        os.close(rounds_in)
        listener.close()
        os.kill(child, signal.SIGKILL)  # where the trial broke it waits for streams that never come
        os.waitpid(child, 0)
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
