"""What stands for a tokenizer: a token id is a token, and so is a word between white space."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final
from zlib import crc32

VOCABULARY: Final = 32_000
MESSAGE_START, MESSAGE_END, NEW_LINE = range(VOCABULARY, VOCABULARY + 3)
"""What a chat template adds, as ChatML does. An answer that stops by itself ends with MESSAGE_END."""
WORDS: Final = ("the", "tank", "is", "filled", "to", "its", "mark", "and", "no", "further")


def ids_of(text: str) -> list[int]:
    """One id a word; the same word has the same id."""
    return [crc32(word.encode()) % VOCABULARY for word in text.split()]


def ids_of_chat(messages: Iterable[tuple[str, str]]) -> list[int]:
    """Ids of a conversation of (role, content), up to where the answer begins.

    The next turn begins with this turn's ids and those of its answer, as with most chat templates: four
    tokens around each message, three before the answer.
    """
    ids: list[int] = []
    for role, content in messages:
        ids += [*_opening(role), *ids_of(content), MESSAGE_END]
    return ids + _opening("assistant")


WORD_IDS: Final = tuple(ids_of(" ".join(WORDS)))


def output_ids(count: int) -> list[int]:
    """Ids of the first output tokens: those that their text has in a prompt."""
    return [WORD_IDS[position % len(WORDS)] for position in range(count)]


def text_of(first: int, count: int) -> str:
    """The words of output tokens `first` .. `first + count - 1`: one token is one word."""
    return "".join(" " + WORDS[position % len(WORDS)] for position in range(first, first + count))


def text_of_ids(ids: Iterable[int]) -> str:
    """As many words as ids; a hash cannot be turned back, so not the words they came from."""
    return "".join(" " + WORDS[one % len(WORDS)] for one in ids)


def _opening(role: str) -> list[int]:
    return [MESSAGE_START, *ids_of(role or "user"), NEW_LINE]
