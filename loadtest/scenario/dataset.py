"""Recorded prompts: ShareGPT's conversations or lines of JSON; which rows are taken follows from the seed.

How long a text is in tokens only the server's tokenizer knows: it is asked once, before the load, and the
counts are kept with the scenario.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from estimator.spec import Lengths
from loadtest.scenario.parts import STRICT, ScenarioError, require, require_positive, stamp

DatasetFormat = Literal["sharegpt", "jsonl"]
Messages = tuple[Mapping[str, str], ...]
FILE_BYTES_MAX: Final = 2 * 2**30
"""The usual file of ShareGPT has 0.7 GB."""
LINE_BYTES_MAX: Final = 10_000_000
CHUNK_BYTES: Final = 2**18
ROWS_MAX: Final = 500
TEXT_BYTES_PER_TOKEN: Final = 4
"""Of English in today's tokenizers; used only until the server has counted."""


class Counted(NamedTuple):
    """How long row number `row` is here, tokens; the prompt with its template and what makes it unique."""

    row: int
    input_tokens: int
    output_tokens: int


class DatasetRow(NamedTuple):
    """One recorded request: text or messages, and how long its answer was, where that is known."""

    prompt: str | Messages
    answer: str | None = None
    output_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """A file of prompts, of which `rows_max` are sampled. unique: words of our own stand in front of each."""

    __pydantic_config__ = STRICT

    file: str
    format: DatasetFormat
    rows_max: int = ROWS_MAX
    unique: bool = True
    counted: tuple[Counted, ...] = ()
    """Written by the reader of the scenario, and again when the server has counted."""
    is_guess: bool = False
    """They are guessed from the texts' bytes: no server was asked yet."""

    skip_long: bool = False
    """Rows that are longer than the server takes are left out, as `vllm bench serve` does."""

    def fitted(self, max_model_len: int | None) -> Dataset:
        """Without the rows that are too long; raises ScenarioError where they must not be left out."""
        short = tuple(
            row
            for row in self.counted
            if max_model_len is None or row.input_tokens + row.output_tokens <= max_model_len
        )
        require(
            self.skip_long or len(short) == len(self.counted),
            f"{len(self.counted) - len(short)} of {len(self.counted)} rows of {self.file} are longer than the"
            f" {max_model_len} tokens the server takes (max_model_len): set dataset.skip_long: true",
        )
        require(bool(short), f"no row of {self.file} fits into max_model_len {max_model_len}")
        return replace(self, counted=short)

    def __post_init__(self) -> None:
        require_positive("dataset.", self, "rows_max")
        require(self.rows_max <= 10_000, f"dataset.rows_max must be at most 10,000, got {self.rows_max}")


def dataset_rows(dataset: Dataset, seed: int) -> Mapping[int, DatasetRow]:
    """The sampled rows by their number in the file. Raises ScenarioError when the file cannot be used."""
    return _rows(dataset.file, dataset.format, dataset.rows_max, seed, stamp(dataset.file))


def counted(
    dataset: Dataset,
    seed: int,
    output_tokens: Lengths | None,
    *,
    count_prompt: Callable[[DatasetRow], int],
    count_answer: Callable[[str], int],
) -> Dataset:
    """The dataset with the length of every sampled row, the prompt as it will be sent.

    An answer is as long as `output_tokens` says, where that is given; else as it was recorded. Raises
    ScenarioError where neither says.
    """

    def answer_tokens(number: int, row: DatasetRow) -> int:
        if output_tokens is not None:
            return output_tokens.at(random.Random(f"answer {seed}/{number}").random())  # noqa: S311
        if row.output_tokens is not None:
            return row.output_tokens
        require(
            row.answer is not None,
            f"dataset {dataset.file}, row {number} has no output_tokens: add them or give output_tokens",
        )
        return count_answer(row.answer or "")

    rows = dataset_rows(dataset, seed)
    return replace(
        dataset,
        counted=tuple(Counted(n, count_prompt(row), answer_tokens(n, row)) for n, row in rows.items()),
        is_guess=False,
    )


def guessed_tokens(row: DatasetRow) -> int:
    """From the text's bytes, until a server has counted."""
    texts = [row.prompt] if isinstance(row.prompt, str) else [message["content"] for message in row.prompt]
    return guessed_text_tokens("".join(texts))


def guessed_text_tokens(text: str) -> int:
    return max(1, len(text.encode()) // TEXT_BYTES_PER_TOKEN)


@lru_cache(maxsize=2)
def _rows(file: str, form: DatasetFormat, rows_max: int, seed: int, _: int) -> Mapping[int, DatasetRow]:
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


def _first_exchange(turns: list[Any], _: str) -> DatasetRow:
    return DatasetRow(prompt=turns[0]["value"], answer=turns[1]["value"])


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
    "sharegpt": _first_exchange,
    "jsonl": _json_line,
}
