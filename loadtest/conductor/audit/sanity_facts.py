"""Sends one streaming request and notes everything that can be seen of its answer, read by read.

A plain blocking socket: the same inside Locust's patched process and outside it. The bytes are understood by
the load's own reader.
"""

from __future__ import annotations

import json
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from loadtest.access import client_context
from loadtest.origin import ApiKey, Origin
from loadtest.workers.http1 import BadResponse, ResponseReader
from loadtest.workers.reply import FINISH_REASON_CHARS, Reply, told
from loadtest.workers.sse import EventTooLarge

READ_BYTES: Final = 65_536
ANSWER_BYTES_MAX: Final = 2**20
CONNECT_S_MAX: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SanityPlan:
    """The one request: where to, what, and the tokens it has and asks for. None: nobody counted them."""

    path: str
    body: Mapping[str, Any]
    input_tokens: int | None
    output_tokens: int
    headers: Mapping[str, str] = field(default_factory=dict)
    tokenizer: str | None = None
    """Who counted them, if it was not the server."""
    limit_s: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFacts:
    """What the handshake agreed on; `expires_in_s` is None for a certificate that was not verified."""

    version: str
    cipher: str
    expires_in_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SanityFacts:
    """One answer. Seconds count from when the request had been sent; None is not seen."""

    status: int | None = None
    http_version: str = ""
    content_type: str = ""
    location: str | None = None
    error: str | None = None
    """The server's words, or why there were none; printable, without the key."""
    timed_out: bool = False
    ttft_s: float | None = None
    e2e_s: float | None = None
    chunks_of_reads: tuple[int, ...] = ()
    """Token events in each read that had any."""
    has_role_chunk: bool = False
    finish_reason: str | None = None
    done: bool = False
    clean_end: bool = False
    input_tokens: int | None = None
    output_tokens: int | None = None
    tls: TlsFacts | None = None

    @property
    def chunks(self) -> int:
        return sum(self.chunks_of_reads)

    @property
    def tokens_per_s(self) -> float | None:
        """Of this lone stream, after its first token."""
        if self.ttft_s is None or self.e2e_s is None or not self.output_tokens or self.output_tokens < 2:
            return None
        return (self.output_tokens - 1) / max(self.e2e_s - self.ttft_s, 1e-6)


def ask_once(origin: Origin, key: ApiKey | None, plan: SanityPlan) -> SanityFacts:
    """Never raises for what a server or a network does: that is what it is here to see."""
    tls: TlsFacts | None = None
    try:
        with _connected(origin) as connection:
            tls = _tls_facts(connection)
            return _answer(connection, _request(origin, key, plan), plan, key, tls)
    except (OSError, UnicodeError) as error:
        reason = str(error) or type(error).__name__
        return SanityFacts(error=reason, timed_out=isinstance(error, TimeoutError), tls=tls)


def _connected(origin: Origin) -> socket.socket:
    connection = socket.create_connection((origin.host, origin.port), timeout=CONNECT_S_MAX)
    if origin.scheme == "http":
        return connection
    return client_context(origin.access).wrap_socket(connection, server_hostname=origin.host)


def _tls_facts(connection: socket.socket) -> TlsFacts | None:
    if not isinstance(connection, ssl.SSLSocket):
        return None
    cipher, certificate = connection.cipher(), connection.getpeercert()
    expires = certificate.get("notAfter") if certificate else None
    return TlsFacts(
        version=connection.version() or "unknown",
        cipher=cipher[0] if cipher else "unknown",
        expires_in_s=ssl.cert_time_to_seconds(expires) - time.time() if isinstance(expires, str) else None,
    )


def _request(origin: Origin, key: ApiKey | None, plan: SanityPlan) -> bytes:
    payload = json.dumps(plan.body, separators=(",", ":")).encode()
    head = [
        f"POST {origin.path}{plan.path} HTTP/1.1",
        f"Host: {origin.host_header}",
        "Content-Type: application/json",
        "Accept: text/event-stream",
        "Accept-Encoding: identity",
        "Connection: close",
        f"Content-Length: {len(payload)}",
        *(f"{name}: {value}" for name, value in plan.headers.items()),
    ]
    if key is not None:
        head.append("{}: {}".format(*key.header()))
    return "\r\n".join((*head, "", "")).encode("latin-1") + payload


class _Seen:
    """The answer so far, through the load's own reader."""

    def __init__(self) -> None:
        self.reader = ResponseReader()
        self.reply = Reply(is_stream=False)
        self.version = b""
        self.chunks_of_reads: list[int] = []
        self.body = bytearray()
        self.error: str | None = None

    def take(self, data: bytes, at_ns: int) -> None:
        self.version = (self.version + data)[:8]
        body = self.reader.feed(data)
        if self.reader.has_headers and self.is_stream and not self.reply.is_stream:
            self.reply = Reply(is_stream=True)
        before = self.reply.chunks
        self.body += body
        self.reply.feed(body, at_ns)
        if self.reply.chunks > before:
            self.chunks_of_reads.append(self.reply.chunks - before)

    @property
    def is_stream(self) -> bool:
        kind = self.reader.headers.get("content-type", "").lower()
        return self.reader.status == 200 and kind.startswith("text/event-stream")


def _answer(
    connection: socket.socket, request: bytes, plan: SanityPlan, key: ApiKey | None, tls: TlsFacts | None
) -> SanityFacts:
    seen, clean_end, timed_out, fault = _Seen(), False, False, None
    connection.settimeout(plan.limit_s)
    connection.sendall(request)
    sent_ns = time.perf_counter_ns()
    try:
        clean_end = _read_to_end(connection, seen, sent_ns + int(plan.limit_s * 1e9))
    except TimeoutError:
        timed_out, fault = True, f"no whole answer within {plan.limit_s:g} s"
    except (OSError, BadResponse, EventTooLarge) as error:
        fault = str(error) or type(error).__name__
    reply, headers = seen.reply, seen.reader.headers
    first_ns, last_ns = reply.first_token_ns, reply.last_token_ns
    said = reply.error or reply.unreadable or fault or reply.error_body() or None
    return SanityFacts(
        status=seen.reader.status if seen.reader.has_headers else None,
        http_version=seen.version.decode("latin-1") if seen.reader.status else "",
        content_type=told(headers.get("content-type"), key) or "",
        location=told(headers.get("location"), key),
        error=told(said, key),
        timed_out=timed_out,
        ttft_s=None if first_ns is None else (first_ns - sent_ns) / 1e9,
        e2e_s=None if last_ns is None else (last_ns - sent_ns) / 1e9,
        chunks_of_reads=tuple(seen.chunks_of_reads),
        has_role_chunk=b'"role"' in seen.body,
        finish_reason=told(reply.finish_reason, key, FINISH_REASON_CHARS),
        done=reply.done,
        clean_end=clean_end,
        input_tokens=reply.input_tokens,
        output_tokens=reply.output_tokens,
        tls=tls,
    )


def _read_to_end(connection: socket.socket, seen: _Seen, limit_ns: int) -> bool:
    """True after a clean end. Raises TimeoutError, OSError, BadResponse, EventTooLarge."""
    read_bytes = 0
    while not seen.reader.complete:
        left_s = (limit_ns - time.perf_counter_ns()) / 1e9
        if left_s <= 0:
            raise TimeoutError
        connection.settimeout(left_s)
        data = connection.recv(READ_BYTES)
        if not data:
            return seen.reader.end_of_stream()
        read_bytes += len(data)
        if read_bytes > ANSWER_BYTES_MAX:
            raise BadResponse(f"an answer of more than {ANSWER_BYTES_MAX} bytes")
        seen.take(data, time.perf_counter_ns())
    return True
