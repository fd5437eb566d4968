"""Server-sent events and what they mean: bytes, however they were cut, to tokens, usage and an end. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

EVENT_BYTES_MAX: Final = 16 * 2**20
"""A longer event is refused: no token needs it, and a hostile server must not fill our memory."""
DONE: Final = b"[DONE]"
BOM: Final = b"\xef\xbb\xbf"
GOOD_FINISHES: Final = frozenset({"stop", "length", "tool_calls", "function_call"})

_LINE_END: Final = re.compile(rb"\r\n|\n|\r")  # not splitlines(): that also splits at other characters
_TOKEN_FIELDS: Final = ("content", "reasoning", "reasoning_content", "tool_calls", "function_call", "refusal")


class EventTooLarge(ValueError):  # noqa: N818  (reads as what happened)
    """The server sent more than EVENT_BYTES_MAX without ending an event."""


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One event of the stream: its name ('' for a plain one) and its data, lines joined by LF."""

    name: str
    data: bytes


class EventReader:
    """Cuts a byte stream into events; feeding it byte by byte or at once gives the same events."""

    __slots__ = ("_buffer", "_data", "_first_line", "_name", "_skip_lf")

    def __init__(self) -> None:
        self._buffer = b""
        self._data: list[bytes] = []
        self._name = ""
        self._skip_lf = False
        self._first_line = True

    def feed(self, chunk: bytes) -> list[ServerEvent]:
        """The events that `chunk` completes. Raises EventTooLarge."""
        if self._skip_lf and chunk:
            chunk = chunk.removeprefix(b"\n")  # the second half of a CRLF that was cut
            self._skip_lf = False
        lines = _LINE_END.split(self._buffer + chunk)
        self._skip_lf = (chunk or self._buffer).endswith(b"\r")
        self._buffer = lines.pop()
        if len(self._buffer) + sum(map(len, self._data)) > EVENT_BYTES_MAX:
            raise EventTooLarge(f"an event of more than {EVENT_BYTES_MAX} bytes")
        events: list[ServerEvent] = []
        for line in lines:
            event = self._line(line)
            if event is not None:
                events.append(event)
        return events

    def _line(self, line: bytes) -> ServerEvent | None:
        if self._first_line:
            line = line.removeprefix(BOM)
            self._first_line = False
        if not line:
            event = ServerEvent(self._name, b"\n".join(self._data)) if self._data else None
            self._data, self._name = [], ""
            return event
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
        elif field == b"event":
            self._name = value.decode("utf-8", errors="replace")[:64]
        return None  # a comment (empty field), id, retry or an unknown field


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """What one event says. `has_token` is False for a chunk that only names the role or the usage."""

    has_token: bool = False
    done: bool = False
    finish_reason: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    error: str | None = None
    unreadable: bool = False


def read_event(event: ServerEvent) -> Meaning:
    """Understands /v1/completions and /v1/chat/completions chunks; never raises."""
    if event.data == DONE:
        return Meaning(done=True)
    try:
        body = json.loads(event.data)
    except (ValueError, RecursionError):
        return Meaning(unreadable=True, error=_shown(event.data))
    if not isinstance(body, dict):
        return Meaning(unreadable=True, error=_shown(event.data))
    if event.name == "error" or body.get("error"):
        return Meaning(error=_error_text(body))
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        choice = {}
    finish_reason = choice.get("finish_reason")
    return Meaning(
        has_token=_has_token(choice),
        finish_reason=finish_reason if isinstance(finish_reason, str) else None,
        input_tokens=_usage(body, "prompt_tokens"),
        output_tokens=_usage(body, "completion_tokens"),
    )


def _has_token(choice: Mapping[str, Any]) -> bool:
    """An empty text still counts: the server holds half a character. A chunk of the role alone does not."""
    if isinstance(choice.get("text"), str):
        return True
    delta = choice.get("delta")
    if not isinstance(delta, dict):
        return False
    if "role" in delta:
        return any(delta.get(field) for field in _TOKEN_FIELDS)
    return any(delta.get(field) is not None for field in _TOKEN_FIELDS)


def _usage(body: Mapping[str, Any], name: str) -> int | None:
    usage = body.get("usage")
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _error_text(body: Mapping[str, Any]) -> str:
    error = body.get("error")
    text = error.get("message") if isinstance(error, dict) else error
    return text if isinstance(text, str) and text else _shown(json.dumps(body).encode())


def _shown(data: bytes) -> str:
    return data[:200].decode("utf-8", errors="replace")
