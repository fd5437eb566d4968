"""One reply, folded as it arrives: body bytes and when they were read, in; a record's facts, out. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from loadtest.records import ERROR_BYTES_MAX, Outcome
from loadtest.workers.sse import ERROR_SOURCE_BYTES, GOOD_FINISHES, EventReader, Meaning, read_event

BODY_BYTES_MAX: Final = 64 * 2**20
FINISH_REASON_CHARS: Final = 40


class ReplyTooLarge(ValueError):  # noqa: N818  (reads as what happened)
    """The server sent more than BODY_BYTES_MAX: no answer we ask for needs that."""


class Reply:
    """What a streamed answer has said so far. Times are nanoseconds of one monotonic clock."""

    __slots__ = (
        "_body",
        "_body_bytes",
        "_reader",
        "chunks",
        "coalesced_reads",
        "done",
        "error",
        "finish_reason",
        "first_token_ns",
        "gaps_ns",
        "input_tokens",
        "is_stream",
        "last_token_ns",
        "output_tokens",
        "unreadable",
    )

    def __init__(self, *, is_stream: bool) -> None:
        self.is_stream = is_stream
        self.first_token_ns: int | None = None
        self.last_token_ns: int | None = None
        self.gaps_ns: list[int] = []
        self.chunks = 0
        self.coalesced_reads = 0
        self.input_tokens: int | None = None
        self.output_tokens: int | None = None
        self.finish_reason: str | None = None
        self.done = False
        self.error: str | None = None
        self.unreadable: str | None = None
        self._reader = EventReader()
        self._body = b""
        self._body_bytes = 0

    def feed(self, body: bytes, at_ns: int) -> None:
        """`body` was read at `at_ns`; every token in it gets that time.

        Raises EventTooLarge or ReplyTooLarge when there is no use in reading on.
        """
        self._body_bytes += len(body)
        if self._body_bytes > BODY_BYTES_MAX:
            raise ReplyTooLarge(f"an answer of more than {BODY_BYTES_MAX} bytes")
        if not self.is_stream:
            self._body = (self._body + body)[:ERROR_SOURCE_BYTES]
            return
        before = self.chunks
        for event in self._reader.feed(body):
            self._take(read_event(event), at_ns)
        if self.chunks - before > 1:
            self.coalesced_reads += 1

    def _take(self, said: Meaning, at_ns: int) -> None:
        if said.has_token:
            self.chunks += 1
            if self.last_token_ns is None:
                self.first_token_ns = at_ns
            else:
                self.gaps_ns.append(at_ns - self.last_token_ns)
            self.last_token_ns = at_ns
        self.done = self.done or said.done
        if said.finish_reason:
            self.finish_reason = plain_text(said.finish_reason)[:FINISH_REASON_CHARS]
        if said.input_tokens is not None:
            self.input_tokens = said.input_tokens
        if said.output_tokens is not None:
            self.output_tokens = said.output_tokens
        if said.unreadable:
            self.unreadable = self.unreadable or said.error or "not JSON"
        elif said.error is not None:
            self.error = self.error or said.error

    def error_body(self) -> str:
        """The start of an answer that was no stream, for the record."""
        return self._body.decode("utf-8", errors="replace")

    def outcome(self, *, status: int, clean_end: bool, planned_output_tokens: int) -> Outcome:
        """How a request with a whole HTTP answer, or one cut short (clean_end False), ended.

        ok needs a finish reason the engine gives for a good end, [DONE] and a clean HTTP end; an error in
        the stream beats everything, also when tokens came before it. Fewer tokens than planned are short_eos,
        also when the server clipped them. A redirect is not followed and counts as bad_payload.
        """
        if status != 200:
            return _status_outcome(status)
        if self.error is not None:
            return "stream_error"
        if self.unreadable is not None or not self.is_stream:
            return "bad_payload"
        if self.finish_reason is not None and self.finish_reason not in GOOD_FINISHES:
            return "aborted"
        if not (self.done and clean_end and self.finish_reason is not None):
            return "truncated"
        if self.output_tokens is not None and self.output_tokens < planned_output_tokens:
            return "short_eos"
        return "ok"


def _status_outcome(status: int) -> Outcome:
    if status == 429:
        return "http_429"
    if status == 503:
        return "http_503_admission"
    if status >= 500:
        return "http_5xx"
    return "http_4xx" if 400 <= status < 500 else "bad_payload"


def plain_text(text: str) -> str:
    """A server's words made harmless for terminals, tables and files: at most ERROR_BYTES_MAX of UTF-8."""
    printable = "".join(
        char if char.isprintable() else " " if char.isspace() else "\N{REPLACEMENT CHARACTER}"
        for char in text[:ERROR_BYTES_MAX]
    )
    return printable.encode()[:ERROR_BYTES_MAX].decode(errors="ignore")


def gap_quantile_s(sorted_gaps_ns: Sequence[int], share: float) -> float | None:
    """The nearest-rank quantile of the gaps between chunks, seconds; None without a gap."""
    if not sorted_gaps_ns:
        return None
    return sorted_gaps_ns[min(int(share * len(sorted_gaps_ns)), len(sorted_gaps_ns) - 1)] / 1e9
