"""What stands for a tokenizer: a token id is a token, and so is a word between white space."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final
from zlib import crc32

VOCABULARY: Final = 32_000
TOKENS_PER_MESSAGE: Final = 4
TOKENS_PER_CHAT: Final = 3
"""What a chat template adds: around each message, and the generation prompt."""
WORDS: Final = ("the", "tank", "is", "filled", "to", "its", "mark", "and", "no", "further")


def ids_of(text: str) -> list[int]:
    """One id a word; the same word has the same id."""
    return [crc32(word.encode()) % VOCABULARY for word in text.split()]


def ids_of_chat(contents: Iterable[str]) -> list[int]:
    """Ids of a conversation, the template's own tokens included."""
    ids = [0] * TOKENS_PER_CHAT
    for content in contents:
        ids += [0] * TOKENS_PER_MESSAGE + ids_of(content)
    return ids


def text_of(first: int, count: int) -> str:
    """The words of output tokens `first` .. `first + count - 1`: one token is one word."""
    return "".join(" " + WORDS[position % len(WORDS)] for position in range(first, first + count))


def text_of_ids(ids: Iterable[int]) -> str:
    """As many words as ids; a hash cannot be turned back, so not the words they came from."""
    return "".join(" " + WORDS[one % len(WORDS)] for one in ids)
