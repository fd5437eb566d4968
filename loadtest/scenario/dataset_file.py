"""The files of recorded prompts, row by row: ShareGPT's conversations, or lines of JSON."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from loadtest.scenario.parts import ScenarioError, require

DatasetFormat = Literal["sharegpt", "jsonl"]
Messages = tuple[Mapping[str, str], ...]
FILE_BYTES_MAX: Final = 2 * 2**30
"""The usual file of ShareGPT has 0.7 GB."""
LINE_BYTES_MAX: Final = 10_000_000
CHUNK_BYTES: Final = 2**18


class Exchange(NamedTuple):
    """What a person said in a later turn, and what was answered."""

    question: str
    answer: str


class DatasetRow(NamedTuple):
    """One recorded request: text or messages, and how long its answer was, where that is known."""

    prompt: str | Messages
    answer: str | None = None
    output_tokens: int | None = None
    later: tuple[Exchange, ...] = ()
    """How the conversation went on."""

    @property
    def exchanges(self) -> tuple[Exchange, ...]:
        assert isinstance(self.prompt, str)
        return (Exchange(self.prompt, self.answer or ""), *self.later)

    def until(self, turn: int) -> DatasetRow:
        """The request of that turn, from 0, with all that was said before as it was recorded."""
        if not turn:
            return self
        before = [
            {"role": role, "content": text}
            for exchange in self.exchanges[:turn]
            for role, text in zip(("user", "assistant"), exchange, strict=True)
        ]
        asked = self.exchanges[turn]
        return DatasetRow((*before, {"role": "user", "content": asked.question}), asked.answer)


@lru_cache(maxsize=2)
def read_rows(file: str, form: DatasetFormat, rows_max: int, seed: int, _: int) -> Mapping[int, DatasetRow]:
    """`rows_max` rows of the file by their number in it. The last argument: which state of the file is meant.

    Raises ScenarioError when the file cannot be used.
    """
    path = Path(file)
    try:
        size = path.stat().st_size
        require(
            size <= FILE_BYTES_MAX, f"dataset {file} has {size:,} bytes; at most {FILE_BYTES_MAX:,} are read"
        )
        taken = _sampled(_RAW_ROWS[form](path), rows_max, random.Random(f"dataset {seed}"))  # noqa: S311
        rows = {number: _ROW[form](raw, f"dataset {file}, row {number}") for number, raw in taken.items()}
    except (OSError, UnicodeDecodeError, MemoryError) as error:
        raise ScenarioError(f"cannot read dataset {file}: {error or type(error).__name__}") from error
    require(bool(rows), f"dataset {file} has no conversation that begins with a person and has an answer")
    return rows


def _sampled(rows: Iterator[Any], count: int, rng: random.Random) -> dict[int, Any]:
    """`count` rows, each as likely as the others, however many there are: a reservoir."""
    kept: list[tuple[int, Any]] = []
    for number, row in enumerate(rows):
        if len(kept) < count:
            kept.append((number, row))
        elif (place := rng.randrange(number + 1)) < count:
            kept[place] = number, row
    return dict(sorted(kept, key=lambda one: one[0]))


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8-sig") as text:
        while line := text.readline(LINE_BYTES_MAX + 1):
            require(len(line) <= LINE_BYTES_MAX, f"dataset {path} has a line of more than 10 MB")
            if line.strip():
                yield line


def _conversations(path: Path) -> Iterator[list[Any]]:
    """Those that a person opens and that were answered, as `vllm bench serve` takes them."""
    for entry in _entries(path):
        turns = entry.get("conversations", entry.get("conversation")) if isinstance(entry, dict) else None
        if (
            isinstance(turns, list)
            and len(turns) >= 2
            and _said(turns[0], _PERSON)
            and _said(turns[1], _MODEL)
        ):
            yield turns


def _entries(path: Path) -> Iterator[Any]:
    """The values of one JSON list, one at a time: a file of a gigabyte never lies in memory whole."""
    decode = json.JSONDecoder().raw_decode
    with path.open(encoding="utf-8-sig") as text:
        require(
            text.read(1).strip() == "[",
            f"dataset {path} does not begin with [, as ShareGPT does: format: jsonl?",
        )
        buffer, is_over = "", False
        while True:
            buffer = buffer.lstrip(" \t\r\n,")
            if buffer.startswith("]"):
                return
            try:
                entry, end = decode(buffer)
            except ValueError as error:
                require(not is_over and len(buffer) <= LINE_BYTES_MAX, f"dataset {path} is not JSON: {error}")
                more = text.read(max(CHUNK_BYTES, len(buffer)))
                buffer, is_over = buffer + more, not more
                continue
            yield entry
            buffer = buffer[end:]


_PERSON: Final = ("human", "user")
_MODEL: Final = ("gpt", "assistant", "chatgpt", "bing", "bard")


def _said(turn: Any, who: tuple[str, ...]) -> bool:
    return (
        isinstance(turn, dict)
        and turn.get("from") in who
        and isinstance(turn.get("value"), str)
        and bool(turn["value"].strip())
    )


def _conversation(turns: list[Any], _: str) -> DatasetRow:
    """As far as a person and the model take turns in it."""
    pairs = takewhile(
        lambda pair: _said(pair[0], _PERSON) and _said(pair[1], _MODEL),
        zip(turns[::2], turns[1::2], strict=False),
    )
    (question, answer), *later = (Exchange(*(turn["value"] for turn in pair)) for pair in pairs)
    return DatasetRow(prompt=question, answer=answer, later=tuple(later))


def _json_line(line: str, where: str) -> DatasetRow:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ScenarioError(f"{where} is not JSON: {error}") from error
    require(isinstance(row, dict), f"{where} is no JSON object")
    tokens = row.get("output_tokens", row.get("max_tokens"))
    require(
        tokens is None or (type(tokens) is int and tokens > 0),
        f"{where}: output_tokens must be a whole number above 0, got {tokens!r}",
    )
    return DatasetRow(prompt=_prompt(row, where), output_tokens=tokens)


def _prompt(row: Mapping[str, Any], where: str) -> str | Messages:
    prompt, messages = row.get("prompt"), row.get("messages")
    if isinstance(prompt, str) and prompt and messages is None:
        return prompt
    if prompt is None and isinstance(messages, list) and messages and all(map(_is_message, messages)):
        return tuple(messages)
    raise ScenarioError(f"{where} needs either `prompt`, a text, or `messages`, each with a role and content")


def _is_message(message: Any) -> bool:
    return (
        isinstance(message, dict)
        and isinstance(message.get("role"), str)
        and isinstance(message.get("content"), str)
    )


_RAW_ROWS: Final[Mapping[DatasetFormat, Callable[[Path], Iterator[Any]]]] = {
    "sharegpt": _conversations,
    "jsonl": _lines,
}
_ROW: Final[Mapping[DatasetFormat, Callable[[Any, str], DatasetRow]]] = {
    "sharegpt": _conversation,
    "jsonl": _json_line,
}
