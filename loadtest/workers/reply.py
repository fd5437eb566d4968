"""One reply, folded as it arrives: body bytes and when they were read, in; a record's facts, out. Pure."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from operator import sub
from typing import Final

from loadtest import native
from loadtest.origin import ApiKey
from loadtest.records import ERROR_BYTES_MAX, Outcome
from loadtest.workers.answer import KEPT_BYTES_MAX, answer_text
from loadtest.workers.event_form import EventForm, form_of
from loadtest.workers.sse import ERROR_SOURCE_BYTES, GOOD_FINISHES, Channel, EventReader, Meaning, read_event

FINISH_REASON_CHARS: Final = 40
LESSONS_MAX: Final = 8
"""Forms learned in a row without use, before a stream is taken for one that does not repeat itself."""


class Reply:
    """What a streamed answer has said so far. Times are nanoseconds of one monotonic clock.

    A token costs one entry in `token_ns`. Events of a form seen before are recognised by their bytes;
    `scans=False` decodes every one of them, with the same result.
    """

    __slots__ = (
        "_body",
        "_form",
        "_lessons_left",
        "_reader",
        "_scans",
        "_thinks",
        "coalesced_reads",
        "done",
        "error",
        "finish_reason",
        "first_chunk_tokens",
        "first_output_ns",
        "input_tokens",
        "is_stream",
        "kept",
        "output_tokens",
        "token_ns",
        "unreadable",
    )

    def __init__(self, *, is_stream: bool, scans: bool = True) -> None:
        self.is_stream = is_stream
        self.token_ns = array("q")
        """When the read came that carried each token event."""
        self.coalesced_reads = 0
        self.input_tokens: int | None = None
        self.output_tokens: int | None = None
        self.first_chunk_tokens = 1
        """Tokens in the first token event: by the usage it carries, where the server puts one on it."""
        self.first_output_ns: int | None = None
        """When the answer proper began, where reasoning came before it."""
        self.finish_reason: str | None = None
        """The server's own word, as it came."""
        self.done = False
        self.error: str | None = None
        self.unreadable: str | None = None
        self.kept: bytearray | None = None
        """The stream as it came, where its text is wanted later: an empty one to begin with."""
        self._reader = EventReader()
        self._scans = scans
        self._thinks: bool | None = None
        """False once the answer proper has begun; until then, whether reasoning has come."""
        self._form: EventForm | None = None
        self._lessons_left = LESSONS_MAX
        self._body = b""

    @property
    def chunks(self) -> int:
        return len(self.token_ns)

    @property
    def first_token_ns(self) -> int | None:
        return self.token_ns[0] if self.token_ns else None

    @property
    def last_token_ns(self) -> int | None:
        return self.token_ns[-1] if self.token_ns else None

    def sorted_gaps_ns(self) -> array[int]:
        """The times between token events, the shortest first; exact, and one less than there are events."""
        gaps_ns = self.token_ns[1:]
        if native.gaps is None:
            return array("q", sorted(map(sub, gaps_ns, self.token_ns)))
        if gaps_ns:
            native.gaps.sort_gaps(gaps_ns, self.token_ns[0])
        return gaps_ns

    def feed(self, body: bytes, at_ns: int) -> None:
        """`body` was read at `at_ns`; every token in it gets that time.

        Raises EventTooLarge when there is no use in reading on.
        """
        if not self.is_stream:
            self._body = (self._body + body)[:ERROR_SOURCE_BYTES]
            return
        if self.kept is not None and len(self.kept) < KEPT_BYTES_MAX:
            self.kept += body
        before = len(self.token_ns)
        at = 0
        while at < len(body):
            if (form := self.form) is not None:
                count, at = form.tokens(body, at)
                self.token_ns.extend([at_ns] * count)
                self._lessons_left = LESSONS_MAX if count else self._lessons_left
            if at < len(body):
                at = self._decode(body, at, at_ns)
        if len(self.token_ns) - before > 1:
            self.coalesced_reads += 1

    def date_tokens(self, count: int, at_ns: int) -> None:
        """`count` more token events, at least one, of which nothing but this time is wanted."""
        if count == 1:
            self.token_ns.append(at_ns)
            return
        self.token_ns.extend([at_ns] * count)
        self.coalesced_reads += 1

    def date_reads(self, times_ns: bytes, coalesced_reads: int) -> None:
        """The same for the tokens of many reads: `times_ns` has 8 bytes for each, as `token_ns` has."""
        self.token_ns.frombytes(times_ns)
        self.coalesced_reads += coalesced_reads

    @property
    def form(self) -> EventForm | None:
        """What the next event may be recognised by; None inside one, or when nothing was learned."""
        return self._form if self._form is not None and self._reader.is_between_events else None

    def _decode(self, body: bytes, at: int, at_ns: int) -> int:
        """The long way, as far as the next event may begin."""
        end = body.find(b"\n\n", at) + 2 if self._scans else 0
        piece = body[at:end] if end > 1 else body[at:]
        for event in self._reader.feed(piece):
            said = read_event(event)
            self._take(said, at_ns)
            if self._scans and self._lessons_left:
                self._learn(form_of(event, said))
        return at + len(piece)

    def _learn(self, form: EventForm | None) -> None:
        if form is not None:
            self._form = form
            self._lessons_left -= 1

    def _take(self, said: Meaning, at_ns: int) -> None:
        if said.has_token:
            if said.output_tokens and not self.token_ns:
                self.first_chunk_tokens = said.output_tokens
            self.token_ns.append(at_ns)
            self._follow(said.channel, at_ns)
        self.done = self.done or said.done
        if said.finish_reason:
            self.finish_reason = said.finish_reason[:ERROR_SOURCE_BYTES]
        if said.input_tokens is not None:
            self.input_tokens = said.input_tokens
        if said.output_tokens is not None:
            self.output_tokens = said.output_tokens
        if said.unreadable:
            self.unreadable = self.unreadable or said.error or "not JSON"
        elif said.error is not None:
            self.error = self.error or said.error

    def _follow(self, channel: Channel | None, at_ns: int) -> None:
        """Tokens that are recognised by their form change nothing here: one of their channel was decoded."""
        if channel == "reasoning" and self._thinks is None:
            self._thinks = True
        elif channel == "output" and self._thinks is not False:
            self.first_output_ns = at_ns if self._thinks else None
            self._thinks = False

    def text(self) -> str:
        """What was said, if it was kept."""
        return answer_text(bytes(self.kept or b""))

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


def told(words: str | None, key: ApiKey | None, chars_max: int = ERROR_BYTES_MAX) -> str | None:
    """A server's words as they may be kept: short, harmless, and without our key, which some send back.

    The key goes first: half of one would not be recognised.
    """
    if words is None:
        return None
    return plain_text(words if key is None else key.blotted_out(words))[:chars_max]


def plain_text(text: str) -> str:
    """A server's words made harmless for terminals, tables and files: at most ERROR_BYTES_MAX of UTF-8."""
    if text.isascii() and text.isprintable():
        return text[:ERROR_BYTES_MAX]
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
