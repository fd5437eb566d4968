"""The text of an answer, decoded once it has ended: only a conversation that repeats it needs it. Pure."""

from __future__ import annotations

import json
from typing import Any, Final

from loadtest.workers.sse import DONE, EventReader, EventTooLarge

KEPT_BYTES_MAX: Final = 8 * 2**20
"""Of the stream of one answer, some 40,000 tokens; what came later is missing from the text."""


def answer_text(stream: bytes) -> str:
    """What the assistant said in a stream of events; reasoning and tool calls are no part of it."""
    try:
        events = EventReader().feed(stream)
    except EventTooLarge:
        return ""
    return "".join(_text(event.data) for event in events if event.data.strip() != DONE)


def _text(data: bytes) -> str:
    try:
        choice: Any = json.loads(data)["choices"][0]
        said = choice["text"] if "text" in choice else choice["delta"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return ""  # usage, a role, half an event: nothing that was said
    return said if isinstance(said, str) else ""
