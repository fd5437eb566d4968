"""Text from a server, made inert for a terminal and for Markdown."""

from __future__ import annotations

import unicodedata


def one_line(text: str) -> str:
    """No line breaks, no control or formatting characters: an escape sequence becomes visible nonsense."""
    return "".join(ch if unicodedata.category(ch)[0] != "C" else "\N{REPLACEMENT CHARACTER}" for ch in text)


def markdown_cell(text: str) -> str:
    """`one_line`, and nothing that opens a tag, a link, code or a new cell."""
    return one_line(text).translate(_INERT)


_INERT = str.maketrans(
    {"<": "&lt;", ">": "&gt;", "&": "&amp;"} | {character: f"\\{character}" for character in "\\`*_[]|"}
)
