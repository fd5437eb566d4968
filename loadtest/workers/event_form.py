"""What the token events of one stream have in common, so that the next one is recognised, not decoded.

A server repeats itself: within a stream only the text of a token changes. Once one event was decoded and
was a token and nothing else, so is every event that differs from it in the body of that one string.

Why that is exact. The event was valid JSON, so `"content": "` in it ends a key and begins its value (an
escaped quote ends no string), and the hole is the body of that one string. Another well-formed body in
its place gives the same tree with another value. What an event means depends on the values of these keys
only by their being strings, and by their being empty (which says what channel a token went to, and whether
a delta that names the role is one): so an empty one is never recognised. What the pattern does not take (a
control character, a cut escape, bytes that are not UTF-8) is left to the decoder.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from loadtest.workers.http1 import head_of_chunk
from loadtest.workers.sse import Meaning, ServerEvent

HEADS_MAX: Final = 32
"""Lengths of a read that a form keeps the beginning of: most texts are short, so few lengths come."""
TOKEN_ONLY: Final = tuple(Meaning(has_token=True, channel=channel) for channel in ("output", "reasoning"))
_NEVER: Final = b"\n"
"""No chunk begins so."""
_PLAIN: Final = rb"[ !#-\[\]-\x7f]*+"
_OTHER: Final = (
    rb'\\["\\/bfnrt]|\\u[0-9A-Fa-f]{4}'
    rb"|[\xc2-\xdf][\x80-\xbf]|\xe0[\xa0-\xbf][\x80-\xbf]|[\xe1-\xec\xee\xef][\x80-\xbf]{2}"
    rb"|\xed[\x80-\x9f][\x80-\xbf]|\xf0[\x90-\xbf][\x80-\xbf]{2}|[\xf1-\xf3][\x80-\xbf]{3}"
    rb"|\xf4[\x80-\x8f][\x80-\xbf]{2}"
)
_STRING: Final = _PLAIN + rb"(?:(?:" + _OTHER + rb")" + _PLAIN + rb")*+"
PLAIN: Final = bytes(byte for byte in range(0x20, 0x80) if byte not in b'"\\')
"""What of ASCII a JSON string may hold as it is: most texts are of these alone, and one call tells."""
string_at: Final = re.compile(_STRING).match
_is_string: Final = re.compile(_STRING).fullmatch
"""The longest well-formed body of a JSON string (RFC 8259), in UTF-8; always a match, maybe empty."""
_TEXT: Final = re.compile(
    rb'"(?:content|text|reasoning|reasoning_content|arguments)": ?"(' + _STRING + rb')"',
)


def is_text(text: bytes) -> bool:
    """Something that may stand between the quotes of a JSON string."""
    return bool(text) and (not text.translate(None, PLAIN) or _is_string(text) is not None)


class EventForm:
    """The bytes of a token's event on the wire, before and after the body of its text."""

    __slots__ = ("after", "before", "heads", "tail")

    def __init__(self, before: bytes, after: bytes) -> None:
        self.before = before
        self.after = after
        self.tail = _the_same(after + b"\r\n")
        """The same, with the end of a chunk that ends there."""
        self.heads: dict[int, tuple[bytes, slice]] = {}
        """By the bytes of a whole chunk: how it begins, and where its text is, which is never empty."""

    def tokens_of_read(self, read: bytes) -> int:
        """How many events of this form `read` is, each alone in its HTTP chunk; 0 if it is anything else."""
        head, text_at = self.heads.get(len(read)) or self._head(len(read))
        if read.startswith(head) and read.endswith(self.tail) and is_text(read[text_at]):
            return 1
        return self._tokens_of_chunks(read)

    def _tokens_of_chunks(self, read: bytes) -> int:
        """The same for a reader that is late, or a server that sends several at once."""
        count, at, tail = 0, 0, self.tail
        while at < len(read):
            end = read.find(tail, at) + len(tail)
            head, _ = self.heads.get(end - at) or self._head(end - at)
            if end < len(tail) or not read.startswith(head, at):
                return 0
            if not is_text(read[at + len(head) : end - len(tail)]):
                return 0
            count, at = count + 1, end
        return count

    def tokens(self, body: bytes, at: int) -> tuple[int, int]:
        """How many events of this form follow each other from `at`, and where the first other byte is."""
        count, before, after = 0, self.before, self.after
        while body.startswith(before, at):
            start = at + len(before)
            end = string_at(body, start).end()  # type: ignore[union-attr]  # it always matches
            if end == start or not body.startswith(after, end):
                break
            count += 1
            at = end + len(after)
        return count, at

    def _head(self, chunk_bytes: int) -> tuple[bytes, slice]:
        chunk_head = head_of_chunk(chunk_bytes)
        head, end = chunk_head + self.before, chunk_bytes - len(self.tail)
        found = (head if chunk_head and len(head) < end else _NEVER), slice(len(head), end)
        if len(self.heads) < HEADS_MAX:
            self.heads[chunk_bytes] = found
        return found


@lru_cache(maxsize=64)
def _the_same(tail: bytes) -> bytes:
    """One object for all streams of a server: a thousand copies would not stay in the processor's cache."""
    return tail


def form_of(event: ServerEvent, said: Meaning) -> EventForm | None:
    """The form of an event that was decoded as `said`; None when it is no safe example."""
    if not said.has_token or said not in TOKEN_ONLY or b"\n" in event.data:
        return None
    for found in _TEXT.finditer(event.data):
        if found[1]:
            before, after = event.data[: found.start(1)], event.data[found.end(1) :]
            return EventForm(b"data: " + before, after + b"\n\n")
    return None
