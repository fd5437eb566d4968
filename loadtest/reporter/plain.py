"""Text from a server, made inert for a terminal and for Markdown; figures that may be missing."""

from __future__ import annotations

import unicodedata
from typing import Final

NOT_SEEN: Final = "not seen"


def one_line(text: str) -> str:
    """No line breaks, no control or formatting characters: an escape sequence becomes visible nonsense."""
    return "".join(ch if unicodedata.category(ch)[0] != "C" else "\N{REPLACEMENT CHARACTER}" for ch in text)


def markdown_cell(text: str) -> str:
    """`one_line`, and nothing that opens a tag, a link, code or a new cell."""
    return one_line(text).translate(_INERT)


_INERT = str.maketrans(
    {"<": "&lt;", ">": "&gt;", "&": "&amp;"} | {character: f"\\{character}" for character in "\\`*_[]|"}
)


def shown(value: float | None, pattern: str) -> str:
    return NOT_SEEN if value is None else pattern.format(value)
