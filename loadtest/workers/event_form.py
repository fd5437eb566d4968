"""What the token events of one stream have in common, so that the next one is recognised, not decoded.

A server repeats itself: within a stream only the text of a token changes. Once one event was decoded and
was a token and nothing else, so is every event that differs from it in the body of that one string.

Why that is exact. The event was valid JSON, so `"content": "` in it ends a key and begins its value (an
escaped quote ends no string), and the hole is the body of that one string. Another well-formed body in
its place gives the same tree with another value. What an event means depends on the values of these keys
only by their being strings, and by their being empty where a delta also names the role: so an empty one
is never recognised. What the pattern does not take (a control character, a cut escape, bytes that are not
UTF-8) is left to the decoder.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from loadtest.workers.http1 import head_of_chunk
from loadtest.workers.sse import Meaning, ServerEvent

HEADS_MAX: Final = 32
"""Lengths of a read that a form keeps the beginning of: most texts are short, so few lengths come."""
TOKEN_ONLY: Final = Meaning(has_token=True)
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
string_at: Final = re.compile(_STRING).match
"""The longest well-formed body of a JSON string (RFC 8259), in UTF-8; always a match, maybe empty."""
_TEXT: Final = re.compile(
    rb'"(?:content|text|reasoning|reasoning_content|arguments)": ?"(' + _STRING + rb')"',
)


class EventForm:
    """The bytes of a token's event on the wire, before and after the body of its text."""

    __slots__ = ("_heads", "after", "before", "tail")

    def __init__(self, before: bytes, after: bytes) -> None:
        self.before = before
        self.after = after
        self.tail = _the_same(after + b"\r\n")
        """The same, with the end of a chunk that ends there."""
        self._heads: dict[int, bytes] = {}

    def is_one_token(self, read: bytes) -> bool:
        """`read` is one HTTP chunk that holds one event of this form, and nothing else."""
        read_bytes, tail = len(read), self.tail
        head = self._heads.get(read_bytes) or self._head(read_bytes)
        text_end = read_bytes - len(tail)
        return (
            read.startswith(head)
            and read.endswith(tail)
            and len(head) < text_end
            and string_at(read, len(head), text_end).end() == text_end  # type: ignore[union-attr]
        )

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

    def _head(self, read_bytes: int) -> bytes:
        chunk_head = head_of_chunk(read_bytes)
        head = chunk_head + self.before if chunk_head else _NEVER
        if len(self._heads) < HEADS_MAX:
            self._heads[read_bytes] = head
        return head


@lru_cache(maxsize=64)
def _the_same(tail: bytes) -> bytes:
    """One object for all streams of a server: a thousand copies would not stay in the processor's cache."""
    return tail


def form_of(event: ServerEvent, said: Meaning) -> EventForm | None:
    """The form of an event that was decoded as `said`; None when it is no safe example."""
    if said != TOKEN_ONLY or b"\n" in event.data:
        return None
    for found in _TEXT.finditer(event.data):
        if found[1]:
            before, after = event.data[: found.start(1)], event.data[found.end(1) :]
            return EventForm(b"data: " + before, after + b"\n\n")
    return None
