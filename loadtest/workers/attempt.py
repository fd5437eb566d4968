"""One try of a request: folds each read as it comes; most are one more token and are only dated. Pure."""

from __future__ import annotations

from typing import Final

from loadtest.records import Outcome
from loadtest.workers.dial import error_text
from loadtest.workers.http1 import BadResponse, ResponseReader
from loadtest.workers.native import Steady
from loadtest.workers.reply import Reply
from loadtest.workers.sse import EventTooLarge

EVENT_STREAM: Final = "text/event-stream"
CODINGS: Final = frozenset({"gzip", "deflate", "br", "zstd", "compress"})
"""Words of a header that may be repeated; any other may hold what nobody shall read."""
ANSWER_BYTES_MAX: Final = 64 * 2**20
"""No answer we ask for needs more; it bounds what a hostile server makes us keep."""


class Fault(Exception):  # noqa: N818  (reads as what happened)
    """A request that cannot go on: how it is called, why, and the system's error behind it."""

    def __init__(self, outcome: Outcome, error: str, cause: BaseException | None = None) -> None:
        super().__init__(error)
        self.outcome: Outcome = outcome
        self.type = type(cause or self).__name__
        self.number: int | None = getattr(cause, "errno", None)


class Attempt(Steady):
    """One try: what was seen so far, so that a fault in the middle keeps it. `take` gets its reads."""

    __slots__ = (
        "clean_end",
        "connected_ns",
        "headers_ns",
        "reader",
        "reply",
        "reused",
        "sent_ns",
        "stopped_ns",
    )

    def __init__(self, *, reused: bool, scans: bool = True, keeps_text: bool = False) -> None:
        self.reused = reused
        self.reply = Reply(is_stream=True, scans=scans)
        super().__init__(self.reply, ANSWER_BYTES_MAX)
        if keeps_text:
            self.reply.kept = bytearray()
        self.reader = ResponseReader(scans=scans)
        self.connected_ns: int | None = None
        self.sent_ns: int | None = None
        self.headers_ns: int | None = None
        self.stopped_ns: int | None = None
        self.clean_end = False

    @property
    def http_status(self) -> int | None:
        """Of the answer, also of one that went wrong after its first line; 1xx is no answer yet."""
        status = self.reader.status
        return status if status is not None and status >= 200 else None

    def _take_other(self, data: bytes, at_ns: int) -> bool:
        """Any read but one plain token of a known form; most are at the ends of an answer."""
        if self.read_bytes > ANSWER_BYTES_MAX:
            raise Fault("bad_payload", f"an answer of more than {ANSWER_BYTES_MAX} bytes")
        steady = self.steady
        if steady is not None and (count := steady.tokens_of_read(data)):
            self.reply.date_tokens(count, at_ns)
            return False
        if not data:
            return self._closed(at_ns)
        reader = self.reader
        try:
            body = reader.feed(data)
            if self.headers_ns is None:
                self._look_at_headers(at_ns)
            if body:
                self.reply.feed(body, at_ns)
        except (BadResponse, EventTooLarge) as error:
            if self.headers_ns is None and reader.has_headers:
                self.headers_ns = at_ns  # they came whole in the read that went on wrongly
            raise Fault("bad_payload", str(error), error) from error
        if reader.complete:
            self.clean_end, self.stopped_ns = True, at_ns
            return True
        if self.reply.kept is None:  # a token that is only dated leaves no text
            self._expect(self.reply.form if reader.is_between_chunks else None)
        return False

    def _look_at_headers(self, at_ns: int) -> None:
        if self.reader.has_headers:
            self.headers_ns = at_ns
            self.reply.is_stream = _is_event_stream(self.reader)

    def _closed(self, at_ns: int) -> bool:
        if not self.read_bytes:
            raise self.reset(ConnectionResetError("closed before the first byte"))
        if not self.reader.has_headers:
            raise Fault("truncated", "the answer ended inside its headers")
        self.clean_end, self.stopped_ns = self.reader.end_of_stream(), at_ns
        return True

    def reset(self, error: OSError) -> Fault:
        if self.read_bytes:
            return Fault("reset_midstream", error_text(error), error)
        return Fault("reset_reused" if self.reused else "reset_fresh", error_text(error), error)


def _is_event_stream(reader: ResponseReader) -> bool:
    coding = reader.headers.get("content-encoding", "identity").lower()
    if coding != "identity":
        named = coding if coding in CODINGS else "otherwise"
        raise Fault("bad_payload", f"the answer is {named}-encoded though identity was asked for")
    return reader.status == 200 and reader.headers.get("content-type", "").lower().startswith(EVENT_STREAM)
