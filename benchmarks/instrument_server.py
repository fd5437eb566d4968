"""A server that is never the bottleneck: streams precomputed bytes at true times and counts its own lateness.

`python instrument_server.py PORT TTFT_MS ITL_MS TOKENS CORE`; CORE -1 is any, shared with others. One thread,
one epoll, one core. Headers go out at once; TTFT after the request's last byte come a role chunk and the
first token; then one token each ITL, each its own HTTP chunk and its own send(); with the last come usage and
[DONE]. Due times are absolute, so lateness never adds up. `GET /counters` tells what was sent since it was
last asked; the bytes are those of vLLM 0.32.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import socket
import sys
import time
from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import Final

MODEL: Final = "tiny"
HEAD: Final = (
    b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
ID: Final = (
    '"id":"chatcmpl-a7de13c548330797","object":"chat.completion.chunk","created":1795236677,"model":"tiny"'
)
SENDS_AT_ONCE: Final = 64
BIN_NS: Final = 10_000
CLOCK: Final = time.perf_counter_ns


def framed(*events: str) -> bytes:
    """Each event as one HTTP chunk, the way uvicorn sends it."""
    bodies = [f"data: {event}\n\n".encode() for event in events]
    return b"".join(b"%x\r\n%s\r\n" % (len(body), body) for body in bodies)


def chat_event(delta: str, finish: str = "null") -> str:
    return (
        f'{{{ID},"choices":[{{"index":0,"delta":{{{delta}}},"logprobs":null,"finish_reason":{finish},'
        '"token_ids":null}]}'
    )


TOKEN: Final = framed(chat_event('"content":" word"'))
FIRST: Final = framed(chat_event('"role":"assistant","content":""')) + TOKEN


def last(tokens: int) -> bytes:
    usage = (
        f'{{{ID},"choices":[],"usage":{{"prompt_tokens":32,"total_tokens":{32 + tokens},'
        f'"completion_tokens":{tokens}}}}}'
    )
    return framed(chat_event('"content":" word"', '"length"'), usage, "[DONE]") + b"0\r\n\r\n"


@dataclass(slots=True, eq=False)
class Stream:
    """One connection and where its answer stands."""

    peer: socket.socket
    heard: bytes = b""
    due_ns: int = 0
    asked_ns: int = 0
    sent_ns: int = 0
    left: int = 0
    is_open: bool = True


@dataclass
class Counters:
    """What happened since somebody last asked. Times are counted by their tens of microseconds."""

    requests: int = 0
    chunks: int = 0
    blocked: int = 0
    first_request_ns: int | None = None
    ttft: defaultdict[int, int] = field(default_factory=lambda: defaultdict(int))
    gap: defaultdict[int, int] = field(default_factory=lambda: defaultdict(int))


class Mock:
    """Two queues in order of due time: first tokens, and the ones after them."""

    def __init__(self, port: int, ttft_ns: int, itl_ns: int, tokens: int) -> None:
        self._ttft_ns, self._itl_ns, self._tokens = ttft_ns, itl_ns, tokens
        self._last = last(tokens)
        self._listener = socket.create_server(("127.0.0.1", port), backlog=4096)
        self._listener.setblocking(False)
        self._poll = select.epoll()
        self._poll.register(self._listener, select.EPOLLIN)
        self._streams: dict[int, Stream] = {}
        self._firsts: deque[Stream] = deque()
        self._nexts: deque[Stream] = deque()
        self._counters = Counters()

    def serve(self) -> None:
        while True:
            now_ns = CLOCK()
            due = [queue[0].due_ns for queue in (self._firsts, self._nexts) if queue]
            wait_ns = min(due) - now_ns if due else 10**9
            if wait_ns > 0:
                self._listen(wait_ns / 1e9)
                continue
            self._send_first(now_ns)
            self._send_next(now_ns)
            self._listen(0.0)

    def _listen(self, within_s: float) -> None:
        # select() on the epoll descriptor waits in microseconds; epoll's own wait is in milliseconds
        if within_s > 0 and not select.select([self._poll], (), (), within_s)[0]:
            return
        for number, _ in self._poll.poll(0, 64):
            if number == self._listener.fileno():
                self._accept()
            else:
                self._hear(self._streams[number])

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                peer, _ = self._listener.accept()
                peer.setblocking(False)
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._streams[peer.fileno()] = Stream(peer)
                self._poll.register(peer, select.EPOLLIN)

    def _hear(self, stream: Stream) -> None:
        try:
            heard = stream.peer.recv(65_536)
        except OSError:
            heard = b""
        if not heard:
            self._close(stream)
            return
        stream.heard += heard
        head, end, body = stream.heard.partition(b"\r\n\r\n")
        _, _, length = head.lower().partition(b"content-length:")
        if not end or (length and len(body) < int(length.partition(b"\r\n")[0])):
            return
        stream.heard = b""
        if head.startswith(b"POST "):
            self._begin(stream)
        else:
            self._answer(stream, head.split(b" ", 2)[1].decode())

    def _begin(self, stream: Stream) -> None:
        stream.asked_ns = CLOCK()
        stream.due_ns = stream.asked_ns + self._ttft_ns
        stream.left = self._tokens
        self._counters.requests += 1
        self._counters.first_request_ns = self._counters.first_request_ns or stream.asked_ns
        self._push(stream, HEAD)
        self._firsts.append(stream)

    def _answer(self, stream: Stream, path: str) -> None:
        body = b"{}"
        if path == "/counters":
            body, self._counters = json.dumps(vars(self._counters)).encode(), Counters()
        elif path == "/v1/models":
            body = json.dumps({"data": [{"id": MODEL, "max_model_len": 8192}]}).encode()
        found = path in ("/counters", "/v1/models", "/health")
        status = b"200 OK" if found else b"404 Not Found"
        self._push(
            stream,
            b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
            % (status, len(body), body),
        )

    def _send_first(self, now_ns: int) -> None:
        queue = self._firsts
        for _ in range(SENDS_AT_ONCE):
            if not queue or queue[0].due_ns > now_ns:
                return
            stream = queue.popleft()
            self._push(stream, FIRST)
            stream.sent_ns = CLOCK()
            self._counters.ttft[(stream.sent_ns - stream.asked_ns) // BIN_NS] += 1
            self._advance(stream)

    def _send_next(self, now_ns: int) -> None:
        queue, counters = self._nexts, self._counters
        for _ in range(SENDS_AT_ONCE):
            if not queue or queue[0].due_ns > now_ns:
                return
            stream = queue.popleft()
            self._push(stream, TOKEN if stream.left > 1 else self._last)
            sent_ns = CLOCK()
            counters.gap[(sent_ns - stream.sent_ns) // BIN_NS] += 1
            stream.sent_ns = sent_ns
            self._advance(stream)

    def _advance(self, stream: Stream) -> None:
        self._counters.chunks += 1
        stream.left -= 1
        stream.due_ns += self._itl_ns
        if stream.left and stream.is_open:
            self._nexts.append(stream)

    def _push(self, stream: Stream, data: bytes) -> None:
        try:
            if stream.is_open and stream.peer.send(data) < len(data):
                self._counters.blocked += 1
                self._close(stream)
        except OSError:
            self._counters.blocked += 1
            self._close(stream)

    def _close(self, stream: Stream) -> None:
        if stream.is_open:
            stream.is_open = False
            self._poll.unregister(stream.peer)
            del self._streams[stream.peer.fileno()]
            stream.peer.close()


def main() -> None:
    port, ttft_ms, itl_ms, tokens, core = (int(word) for word in sys.argv[1:])
    if core >= 0:
        os.sched_setaffinity(0, {core})
        with contextlib.suppress(PermissionError, AttributeError):  # true times need a core to themselves
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
    gc.disable()
    Mock(port, ttft_ms * 10**6, itl_ms * 10**6, tokens).serve()


if __name__ == "__main__":
    main()
