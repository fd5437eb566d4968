"""An HTTP/1.1 response, read as it arrives: status, then body bytes, then a clean end or not. Pure."""

from __future__ import annotations

import re
from contextlib import suppress
from functools import lru_cache
from typing import Final, Literal, NamedTuple

HEADER_BYTES_MAX: Final = 65_536
KNOWN_HEAD_BYTES_MAX: Final = 2048
"""What was read before is remembered, and must be small: a longer head is read line by line."""
QUOTED_BYTES: Final = 8
"""Enough to recognise another protocol by; too little of a key that a peer sends back to us."""
_CHUNK_SIZE: Final = re.compile(rb"[0-9A-Fa-f]{1,15}")  # int() alone would take 0x1f, 1_0 and -1
_CHUNK_HEAD: Final = re.compile(rb"([0-9A-Fa-f]{1,8})\r\n")
_LENGTH: Final = re.compile(r"[0-9]{1,18}")
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: .*)?")
State = Literal["status", "headers", "body", "chunk_size", "chunk", "chunk_end", "trailers", "complete"]


class BadResponse(ValueError):  # noqa: N818  (reads as what happened)
    """The bytes are not an HTTP/1.1 response."""


class Head(NamedTuple):
    """The status line and headers of an answer, and where they leave its reader. Nobody adds to them."""

    status: int | None
    headers: dict[str, str]
    keep_alive: bool
    state: State
    left: int | None
    header_bytes: int


class ResponseReader:
    """Feed it what the socket gave; it returns the body bytes among them.

    Knows chunked, content-length and close-delimited bodies, 1xx answers before the real one, and
    trailers. `complete` is True after a clean end; a close-delimited body ends with `end_of_stream()`.
    Whole chunks of a read are cut out of it at once; `scans=False` takes every byte the long way, with the
    same result.
    """

    __slots__ = (
        "_buffer",
        "_left",
        "_scans",
        "_seen_header_bytes",
        "_state",
        "headers",
        "keep_alive",
        "status",
    )

    def __init__(self, *, scans: bool = True) -> None:
        self._scans = scans
        self.status: int | None = None
        self.headers: dict[str, str] = {}
        self.keep_alive = True
        self._state: State = "status"
        self._buffer = bytearray()
        self._left: int | None = 0
        self._seen_header_bytes = 0

    @property
    def has_headers(self) -> bool:
        return self._state not in ("status", "headers")

    @property
    def complete(self) -> bool:
        return self._state == "complete"

    @property
    def is_between_chunks(self) -> bool:
        return self._state == "chunk_size" and not self._buffer

    @property
    def has_extra_bytes(self) -> bool:
        """The peer sent more than its answer: what comes next on this connection cannot be trusted."""
        return self.complete and bool(self._buffer)

    def feed(self, data: bytes) -> bytes:
        """Body bytes in `data`. Raises BadResponse."""
        body = bytearray()
        if self._scans and self._is_fresh:
            data = data[self._take_known_head(data) :]
        if self._scans and self.is_between_chunks:
            end = _take_whole_chunks(data, body)
            if end == len(data):
                return bytes(body)
            data = data[end:]
        self._buffer += data
        while self._advance(body):
            pass
        return bytes(body)

    def end_of_stream(self) -> bool:
        """The peer closed; True when that is how this body ends, or it had ended already."""
        if self._state == "body" and self._left is None:
            self._state = "complete"
        return self.complete

    @property
    def head(self) -> Head:
        """What was read of it so far."""
        return Head(
            self.status, self.headers, self.keep_alive, self._state, self._left, self._seen_header_bytes
        )

    @property
    def _is_fresh(self) -> bool:
        return self._state == "status" and not self._buffer and not self._seen_header_bytes

    def _take_known_head(self, data: bytes) -> int:
        """Where the body begins, when the whole head is here and can be read at once; else 0."""
        end = data.find(b"\r\n\r\n", 0, KNOWN_HEAD_BYTES_MAX) + 4
        known = _known(data[:end]) if end > 4 else None
        if known is None:
            return 0
        self.status, self.headers, self.keep_alive, self._state, self._left, self._seen_header_bytes = known
        return end

    def _advance(self, body: bytearray) -> bool:
        """One step; False when more bytes are needed or the response is complete."""
        match self._state:
            case "complete":
                return False
            case "body" | "chunk":
                return self._take_body(body)
            case _:
                line = self._line()
                if line is None:
                    return False
                self._on_line(line)
                return True

    def _take_body(self, body: bytearray) -> bool:
        if not self._buffer and self._left != 0:
            return False
        take = len(self._buffer) if self._left is None else min(self._left, len(self._buffer))
        body += self._buffer[:take]
        del self._buffer[:take]
        if self._left is not None:
            self._left -= take
            if self._left == 0:
                self._state = "complete" if self._state == "body" else "chunk_end"
                return True
        return False

    def _line(self) -> bytes | None:
        end = self._buffer.find(b"\n")
        if end < 0:
            if len(self._buffer) > HEADER_BYTES_MAX:
                raise BadResponse(f"a header line of more than {HEADER_BYTES_MAX} bytes")
            return None
        line = bytes(self._buffer[:end]).removesuffix(b"\r")
        del self._buffer[: end + 1]
        return line

    def _on_line(self, line: bytes) -> None:
        match self._state:
            case "status":
                self._on_status(line)
            case "headers":
                self._on_header(line)
            case "chunk_size":
                self._on_chunk_size(line)
            case "chunk_end":
                if line:
                    raise BadResponse("a chunk is longer than its size")
                self._state = "chunk_size"
            case "trailers":
                self._count_header(line)
                if not line:
                    self._state = "complete"

    def _on_status(self, line: bytes) -> None:
        match = _STATUS_LINE.fullmatch(line)
        if match is None:
            raise BadResponse(f"not an HTTP/1 status line: {line[:QUOTED_BYTES]!r}")
        self.status = int(match[2])
        self.keep_alive = match[1] == b"1"  # HTTP/1.0 closes unless it says otherwise
        self.headers = {}
        self._state = "headers"

    def _on_header(self, line: bytes) -> None:
        self._count_header(line)
        if not line:
            self._begin_body()
            return
        name, colon, value = line.partition(b":")
        if not colon:
            raise BadResponse(f"not a header: a line of {len(line)} bytes without a colon")
        self.headers[name.decode("latin-1").strip().lower()] = value.decode("latin-1").strip()

    def _count_header(self, line: bytes) -> None:
        self._seen_header_bytes += len(line) + 2
        if self._seen_header_bytes > HEADER_BYTES_MAX:
            raise BadResponse(f"headers of more than {HEADER_BYTES_MAX} bytes")

    def _begin_body(self) -> None:
        assert self.status is not None
        if self.status < 200:  # 100 Continue and friends: the real answer follows
            self._state = "status"
            return
        connection = self.headers.get("connection", "").lower()
        self.keep_alive = "keep-alive" in connection or (self.keep_alive and "close" not in connection)
        if "chunked" in self.headers.get("transfer-encoding", "").lower():
            self._state = "chunk_size"
            return
        length = self.headers.get("content-length")
        if self.status in (204, 304):
            length = "0"
        if length is None:
            self._left, self.keep_alive, self._state = None, False, "body"
            return
        if not _LENGTH.fullmatch(length):
            raise BadResponse(f"not a content length: {len(length)} characters that are no number")
        self._left, self._state = int(length), "body"

    def _on_chunk_size(self, line: bytes) -> None:
        digits = line.partition(b";")[0].strip()
        if not _CHUNK_SIZE.fullmatch(digits):
            raise BadResponse(f"not a chunk size: {line[:QUOTED_BYTES]!r}")
        size = int(digits, 16)
        self._left = size
        self._state = "chunk" if size else "trailers"


@lru_cache(maxsize=64)
def _known(head: bytes) -> Head | None:
    """What a reader says that has read these bytes; None when they are no head, or a head and more.

    Answers of one server begin alike, for as long as the second in their date lasts.
    """
    if b"\n\n" in head or head.find(b"\n\r\n") != len(head) - 3:
        return None
    reader = ResponseReader(scans=False)
    with suppress(BadResponse):
        reader.feed(head)
        return reader.head
    return None


@lru_cache(maxsize=4096)
def head_of_chunk(whole_bytes: int) -> bytes:
    """How a chunk begins that takes so many bytes with its size and its end; b"" when none does.

    One more digit of the size can leave a number of bytes that no chunk takes.
    """
    for digits in range(1, 9):
        size = whole_bytes - digits - 4
        if size > 0 and len(f"{size:x}") == digits:
            return b"%x\r\n" % size
    return b""


def _take_whole_chunks(data: bytes, body: bytearray) -> int:
    """Adds what the whole chunks at the start of `data` carry; returns where they end."""
    at = 0
    while match := _CHUNK_HEAD.match(data, at):
        start = match.end()
        end = start + int(match[1], 16)
        if end == start or not data.startswith(b"\r\n", end):
            break  # the last chunk, or one that is not here to its end
        body += data[start:end]
        at = end + 2
    return at
