"""Prompts of an exact number of tokens, no two alike, the same again for the same seed. Pure.

The first tokens are a number that no other request has: the engine's prefix cache hashes whole blocks from
the front, so one different token there means nothing is shared and caching cannot flatter the result.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, TypeVar

from loadtest.scenario import ScenarioError

TOKEN_IDS: Final = range(100, 2000)
"""Ids that every served vocabulary has, above the special tokens some keep at the front."""
WORKERS_MAX: Final = 1009
"""A prime: it shares no factor with the base of a nonce, so the first token runs through all ids."""
NONCE_MAX: Final = 2**32 * WORKERS_MAX + 10**9 * WORKERS_MAX
"""Above every nonce: a run's checksum and a thousand million requests of each worker."""

Messages = Sequence[Mapping[str, Any]]
Tokenize = Callable[[str | Messages], int]
"""Tokens the server counts: of chat messages with its template, of a text with what it puts in front."""
Symbol = TypeVar("Symbol", int, str)

_COMMON_WORDS: Final = """
time year people way day man thing woman life child world school state family student group country problem
hand part place case week company system program question work number night point home water room mother area
money story fact month lot right study book eye job word business issue side kind head house service friend
father power hour game line end member law car city name team minute idea body back parent face level office
door health person art war history party result change morning reason air foot age red green blue one two
three four five six seven eight nine ten on off up down in out self if is for not and or as def from import
class return with try else None True
"""
WORDS: Final = tuple(_COMMON_WORDS.split())


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """What one request shall be: its lengths, and the request's own random numbers."""

    input_tokens: int
    output_tokens: int
    rng: random.Random


def nonce(run_id: str, worker: int, seq: int, base: int) -> list[int]:
    """Digits in `base` of a number that no other request of this run has; the run shifts them all.

    The low digit comes first, so that requests that follow each other differ in their very first token.
    """
    number = seq * WORKERS_MAX + worker + zlib.crc32(run_id.encode()) * WORKERS_MAX
    digits: list[int] = []
    for _ in range(_nonce_digits(base)):
        number, digit = divmod(number, base)
        digits.append(digit)
    return digits


@lru_cache(maxsize=8)
def _nonce_digits(base: int) -> int:
    digits = 0
    while base**digits < NONCE_MAX:
        digits += 1
    return digits


def any_of(alphabet: Sequence[Symbol], count: int, rng: random.Random) -> list[Symbol]:
    """`count` symbols at random; two random bytes choose each, which is quicker than rng.choices."""
    wheel = _wheel(alphabet)
    return list(map(wheel.__getitem__, memoryview(rng.randbytes(2 * max(count, 0))).cast("H")))


@lru_cache(maxsize=8)
def _wheel(alphabet: Sequence[Symbol]) -> list[Symbol]:
    return [alphabet[spot * len(alphabet) >> 16] for spot in range(2**16)]


def spelled(
    alphabet: Sequence[Symbol],
    count: int,
    mark: Sequence[int],
    rng: random.Random,
    front: Sequence[Symbol] = (),
) -> list[Symbol]:
    """`count` symbols, each one token: what is shared in front, then the nonce's digits, then anything.

    The front gives way where there is no room for both, so that no two are ever alike.
    """
    shared = list(front[: max(count - len(mark), 0)])
    own = [alphabet[digit] for digit in mark]
    return (shared + own + any_of(alphabet, count - len(shared) - len(own), rng))[:count]


def token_prompt(draw: Draw, run_id: str, worker: int, seq: int) -> list[int]:
    """A prompt of exactly draw.input_tokens ids for /v1/completions."""
    return spelled(TOKEN_IDS, draw.input_tokens, nonce(run_id, worker, seq, len(TOKEN_IDS)), draw.rng)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatWords:
    """Words that are one token each to this server, and the tokens its chat template adds."""

    words: tuple[str, ...]
    overhead_tokens: int
    """Of a conversation of one message, the system prompt and the tools included."""
    turn_tokens: int = 0
    """Of each further answer and question."""


def calibrate(tokenize: Tokenize, wrap: Callable[[Sequence[str]], str | Messages] | None = None) -> ChatWords:
    """Finds words that count as one token wherever they stand, by asking the server's own tokenizer.

    wrap: what stands around the words; a chat message alone when None. Raises ScenarioError when the server
    knows too few of them for exact prompts.
    """
    wrapped = wrap or chat_messages

    def count(words: Sequence[str]) -> int:
        return tokenize(wrapped(words))

    overhead = 2 * count([WORDS[0]] * 8) - count([WORDS[0]] * 16)
    words = tuple(word for word in WORDS if count([word] * 8) == overhead + 8)
    mixed = random.Random(1).choices(words, k=256) if len(words) >= 16 else []  # noqa: S311
    if not mixed or count(mixed) != overhead + len(mixed):
        raise ScenarioError(
            "chat prompts cannot be made to exact lengths with this server's tokenizer: "
            "use endpoint: completions"
        )
    return ChatWords(words=words, overhead_tokens=overhead)


def turn_tokens(tokenize: Tokenize, chat: ChatWords, opening: Messages) -> int:
    """What the template adds for an answer and the next question. opening: what a person says first."""
    said = joined(chat.words[:8])
    more = ({"role": "assistant", "content": said}, {"role": "user", "content": said})
    return max(0, tokenize((*opening, *more)) - tokenize(opening) - 16)


def room_tokens(chat: ChatWords | None) -> int:
    """The shortest prompt that has room for what makes it unique."""
    base, template_tokens = (len(TOKEN_IDS), 0) if chat is None else (len(chat.words), chat.overhead_tokens)
    return template_tokens + len(nonce("", 0, 0, base))


def joined(words: Sequence[str]) -> str:
    return " ".join(("", *words))


def marked_by(chat: ChatWords, run_id: str, worker: int, seq: int) -> list[str]:
    """The nonce in this server's words."""
    return [chat.words[digit] for digit in nonce(run_id, worker, seq, len(chat.words))]


def chat_messages(words: Sequence[str]) -> Messages:
    return [{"role": "user", "content": joined(words)}]


def chat_prompt(draw: Draw, chat: ChatWords, run_id: str, worker: int, seq: int) -> Messages:
    """Messages of exactly draw.input_tokens tokens, the template's own included."""
    mark = nonce(run_id, worker, seq, len(chat.words))
    count = max(draw.input_tokens - chat.overhead_tokens, 1)
    return chat_messages(spelled(chat.words, count, mark, draw.rng))


def request_body(
    model: str, prompt: list[int] | str | Messages, output_tokens: int, *, ignore_eos: bool = True
) -> dict[str, Any]:
    """The JSON body: ids and texts go to /v1/completions, messages to /v1/chat/completions.

    ignore_eos: False leaves the key out, for a server that knows it not.
    """
    key = "prompt" if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)) else "messages"
    return {
        "model": model,
        key: prompt,
        "max_tokens": output_tokens,
        **({"ignore_eos": True} if ignore_eos else {}),
        "temperature": 1.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
