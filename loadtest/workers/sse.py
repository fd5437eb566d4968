"""Server-sent events and what they mean: bytes, however they were cut, to tokens, usage and an end. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple

from loadtest.made_often import made_often

EVENT_BYTES_MAX: Final = 16 * 2**20
"""A longer event is refused: no token needs it, and a hostile server must not fill our memory."""
DONE: Final = b"[DONE]"
BOM: Final = b"\xef\xbb\xbf"
GOOD_FINISHES: Final = frozenset({"stop", "length", "tool_calls"})
ERROR_SOURCE_BYTES: Final = 4096
"""How much of an unreadable answer is looked at for the record's error."""
TOKENS_MAX: Final = 2**31
"""A usage above it is a lie, and more than a results file can hold."""

_parsed: Final = json.JSONDecoder().decode  # json.loads() first looks for UTF-16, which no event has
_LINE_END: Final = re.compile(rb"\r\n|\n|\r")  # not splitlines(): that also splits at other characters
_TEXT_FIELDS: Final = ("content", "reasoning", "reasoning_content")
Channel = Literal["output", "reasoning"]


class EventTooLarge(ValueError):  # noqa: N818  (reads as what happened)
    """The server sent more than the reader's limit without ending an event."""


class ServerEvent(NamedTuple):
    """One event of the stream: its name ('' for a plain one) and its data, lines joined by LF."""

    name: str
    data: bytes


class EventReader:
    """Cuts a byte stream into events; feeding it byte by byte or at once gives the same events."""

    __slots__ = ("_bytes_max", "_data", "_first_line", "_held_bytes", "_name", "_partial", "_skip_lf")

    def __init__(self, event_bytes_max: int = EVENT_BYTES_MAX) -> None:
        self._bytes_max = event_bytes_max
        self._partial = bytearray()
        self._held_bytes = 0
        self._data: list[bytes] = []
        self._name = ""
        self._skip_lf = False
        self._first_line = True

    @property
    def is_between_events(self) -> bool:
        """Nothing of a next event was seen: what comes now begins one."""
        return not (self._held_bytes or self._partial or self._skip_lf)

    def feed(self, chunk: bytes) -> list[ServerEvent]:
        """The events that `chunk` completes. Raises EventTooLarge."""
        if not chunk:
            return []
        if self._is_one_event(chunk):
            self._first_line = False
            return [ServerEvent("", chunk[6:-2])]
        first, *rest = _lines(chunk.removeprefix(b"\n") if self._skip_lf else chunk)
        self._skip_lf = chunk.endswith(b"\r")  # the line ends here; a LF that follows belongs to it
        self._partial += first
        events: list[ServerEvent] = []
        for next_line in rest:
            event = self._line(bytes(self._partial))
            self._partial = bytearray(next_line)
            if event is not None:
                events.append(event)
        if self._held_bytes + len(self._partial) > self._bytes_max:
            raise EventTooLarge(f"an event of more than {self._bytes_max} bytes")
        return events

    def _is_one_event(self, chunk: bytes) -> bool:
        """A whole one of one line of data, as most are: the long way would say the same."""
        return (
            chunk.startswith(b"data: ")
            and chunk.find(b"\n") == len(chunk) - 2
            and chunk.endswith(b"\n")
            and b"\r" not in chunk
            and self.is_between_events
        )

    def _line(self, line: bytes) -> ServerEvent | None:
        if self._first_line:
            line = line.removeprefix(BOM)
            self._first_line = False
        if not line:
            event = ServerEvent(self._name, b"\n".join(self._data)) if self._data else None
            self._data, self._name, self._held_bytes = [], "", 0
            return event
        self._held_bytes += len(line) + 1
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
        elif field == b"event":
            self._name = value.decode("utf-8", errors="replace")[:64]
        return None  # a comment (empty field), id, retry or an unknown field


def _lines(chunk: bytes) -> list[bytes]:
    """Cut at LF, CR LF and CR; the pattern costs ten times as much, and most servers send no CR."""
    return _LINE_END.split(chunk) if b"\r" in chunk else chunk.split(b"\n")


@made_often
class Meaning:
    """What one event says. `has_token` is False for a chunk that only names the role or the usage."""

    has_token: bool = False
    channel: Channel | None = None
    """Where the token's text went; None for a token without text, and for no token."""
    done: bool = False
    finish_reason: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    error: str | None = None
    unreadable: bool = False


def read_event(event: ServerEvent) -> Meaning:
    """Understands /v1/completions and /v1/chat/completions chunks; never raises."""
    if event.data.strip() == DONE:
        return Meaning(done=True)
    if not event.data:
        return Meaning()  # a proxy's sign of life
    try:
        body = _parsed(event.data.decode(errors="surrogatepass"))
    except (ValueError, RecursionError):
        body = None
    if event.name == "error":
        return Meaning(error=_error_text(body) or _shown(event.data))
    if not isinstance(body, dict):
        return Meaning(unreadable=True, error=_shown(event.data))
    # vLLM before 0.10 and LMDeploy put an error at the top level and call the object so
    if body.get("error") is not None or body.get("object") == "error":
        return Meaning(error=_error_text(body) or _shown(event.data))
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        choice = {}
    has_token, channel = _token_of(choice)
    finish_reason = choice.get("finish_reason")
    usage = body.get("usage")
    if not isinstance(usage, dict):
        usage = {}
    return Meaning(
        has_token=has_token,
        channel=channel,
        finish_reason=finish_reason if isinstance(finish_reason, str) else None,
        input_tokens=_count_of(usage.get("prompt_tokens")),
        output_tokens=_count_of(usage.get("completion_tokens")),
    )


def _token_of(choice: Mapping[str, Any]) -> tuple[bool, Channel | None]:
    """Is there a token, and where did its text go?

    An empty text still counts: the server holds half a character. A chunk of the role alone does not. A call
    is output too; where one event holds both, the answer proper has begun.
    """
    if isinstance(text := choice.get("text"), str):
        return True, "output" if text else None
    delta = choice.get("delta")
    if not isinstance(delta, dict):
        return False, None
    texts = [delta[field] for field in _TEXT_FIELDS if isinstance(delta.get(field), str)]
    says, calls = any(texts), bool(delta.get("tool_calls"))
    has_token = calls or (says if "role" in delta else bool(texts))
    if calls or (isinstance(content := delta.get("content"), str) and content):
        return has_token, "output"
    return has_token, "reasoning" if says else None


def _count_of(value: object) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < TOKENS_MAX:
        return value
    return None


def _error_text(body: Any) -> str | None:
    error = body.get("error", body) if isinstance(body, dict) else body
    text = error.get("message") if isinstance(error, dict) else error
    return text if isinstance(text, str) and text else None


def _shown(data: bytes) -> str:
    return data[:ERROR_SOURCE_BYTES].decode("utf-8", errors="replace")
