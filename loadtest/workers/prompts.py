"""Prompts of an exact number of tokens, no two alike, the same again for the same seed. Pure.

The first tokens are a number that no other request has: the engine's prefix cache hashes whole blocks from
the front, so one different token there means nothing is shared and caching cannot flatter the result.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from loadtest.scenario import Scenario, ScenarioError

TOKEN_IDS: Final = range(100, 2000)
"""Ids that every served vocabulary has, above the special tokens some keep at the front."""
WORKERS_MAX: Final = 1009
"""A prime: it shares no factor with the base of a nonce, so the first token runs through all ids."""
NONCE_MAX: Final = 2**32 * WORKERS_MAX + 10**9 * WORKERS_MAX
"""Above every nonce: a run's checksum and a thousand million requests of each worker."""

Messages = Sequence[dict[str, str]]
Tokenize = Callable[[Messages], int]
"""Tokens the server counts for chat messages, its template included."""

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
    """What one request shall be: lengths from the scenario, and the request's own random numbers."""

    input_tokens: int
    output_tokens: int
    rng: random.Random


def draw(scenario: Scenario, worker: int, seq: int) -> Draw:
    """The same for the same seed, worker and sequence number, whatever else runs."""
    rng = random.Random(f"{scenario.seed}/{worker}/{seq}")  # noqa: S311  (a test load, no secret)
    return Draw(
        input_tokens=scenario.input_tokens.at(rng.random()),
        output_tokens=scenario.output_tokens.at(rng.random()),
        rng=rng,
    )


def nonce(run_id: str, worker: int, seq: int, base: int) -> list[int]:
    """Digits in `base` of a number that no other request of this run has; the run shifts them all.

    The low digit comes first, so that requests that follow each other differ in their very first token.
    """
    number = seq * WORKERS_MAX + worker + zlib.crc32(run_id.encode()) * WORKERS_MAX
    digits: list[int] = []
    while base ** len(digits) < NONCE_MAX:
        number, digit = divmod(number, base)
        digits.append(digit)
    return digits


def token_prompt(draw: Draw, run_id: str, worker: int, seq: int) -> list[int]:
    """A prompt of exactly draw.input_tokens ids for /v1/completions."""
    front = [TOKEN_IDS[digit] for digit in nonce(run_id, worker, seq, len(TOKEN_IDS))]
    rest = draw.rng.choices(TOKEN_IDS, k=max(draw.input_tokens - len(front), 0))
    return (front + rest)[: draw.input_tokens]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatWords:
    """Words that are one token each to this server, and the tokens its chat template adds."""

    words: tuple[str, ...]
    overhead_tokens: int


def calibrate(tokenize: Tokenize) -> ChatWords:
    """Finds words that count as one token wherever they stand, by asking the server's own tokenizer.

    Raises ScenarioError when the server knows too few of them for exact prompts.
    """
    overhead = 2 * _count(tokenize, [WORDS[0]] * 8) - _count(tokenize, [WORDS[0]] * 16)
    words = tuple(word for word in WORDS if _count(tokenize, [word] * 8) == overhead + 8)
    mixed = random.Random(1).choices(words, k=256) if len(words) >= 16 else []  # noqa: S311
    if not mixed or _count(tokenize, mixed) != overhead + len(mixed):
        raise ScenarioError(
            "chat prompts cannot be made to exact lengths with this server's tokenizer: "
            "use endpoint: completions"
        )
    return ChatWords(words=words, overhead_tokens=overhead)


def check_room(scenario: Scenario, chat: ChatWords | None) -> None:
    """Raises ScenarioError when the shortest prompt has no room for what makes it unique."""
    base, template_tokens = (len(TOKEN_IDS), 0) if chat is None else (len(chat.words), chat.overhead_tokens)
    needed = template_tokens + len(nonce("", 0, 0, base))
    shortest = scenario.input_tokens.shortest
    if shortest < needed:
        raise ScenarioError(
            f"input_tokens can be as short as {shortest}: a unique prompt takes at least {needed} tokens here"
        )


def _count(tokenize: Tokenize, words: Sequence[str]) -> int:
    return tokenize(chat_messages(words))


def chat_messages(words: Sequence[str]) -> Messages:
    return [{"role": "user", "content": "".join(f" {word}" for word in words)}]


def chat_prompt(draw: Draw, chat: ChatWords, run_id: str, worker: int, seq: int) -> Messages:
    """Messages of exactly draw.input_tokens tokens, the template's own included."""
    count = draw.input_tokens - chat.overhead_tokens
    front = [chat.words[digit] for digit in nonce(run_id, worker, seq, len(chat.words))]
    rest = draw.rng.choices(chat.words, k=max(count - len(front), 0))
    return chat_messages((front + rest)[: max(count, 1)])


def request_body(model: str, prompt: list[int] | Messages, output_tokens: int) -> dict[str, Any]:
    """The JSON body: `prompt` ids go to /v1/completions, messages to /v1/chat/completions."""
    key = "prompt" if prompt and isinstance(prompt[0], int) else "messages"
    return {
        "model": model,
        key: prompt,
        "max_tokens": output_tokens,
        "ignore_eos": True,
        "temperature": 1.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
