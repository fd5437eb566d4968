"""Recorded prompts: ShareGPT's conversations or lines of JSON; which rows are taken follows from the seed.

How long a text is in tokens only the server's tokenizer knows: it is asked once, before the load, and the
counts are kept with the scenario.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Final, NamedTuple

from estimator.spec import Lengths
from loadtest.scenario.dataset_file import DatasetFormat, DatasetRow, read_rows
from loadtest.scenario.parts import STRICT, Session, require, require_positive, stamp

ROWS_MAX: Final = 500
TEXT_BYTES_PER_TOKEN: Final = 4
"""Of English in today's tokenizers; used only until the server has counted."""


class Counted(NamedTuple):
    """How long row number `row` is here, tokens; the prompt with its template and what makes it unique."""

    row: int
    input_tokens: int
    output_tokens: int
    later: tuple[tuple[int, int], ...] = ()
    """The conversation's further turns, where they are sent: each one's whole prompt, and its answer."""

    @property
    def turns(self) -> tuple[tuple[int, int], ...]:
        return ((self.input_tokens, self.output_tokens), *self.later)

    def within(self, tokens_max: int | None) -> Counted | None:
        """What comes before the first turn that is longer, prompt and answer; None where nothing does."""
        if tokens_max is None:
            return self
        fitting = tuple(takewhile(lambda turn: sum(turn) <= tokens_max, self.turns))
        return self._replace(later=fitting[1:]) if fitting else None


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
    """Rows that are longer than the server takes are left out, as `vllm bench serve` does; conversations end
    before."""

    def fitted(self, max_model_len: int | None) -> Dataset:
        """Without the rows that are too long; raises ScenarioError where they must not be left out."""
        short = tuple(cut for row in self.counted if (cut := row.within(max_model_len)) is not None)
        long = len(set(self.counted) - set(short))
        require(
            self.skip_long or not long,
            f"{long} of {len(self.counted)} rows of {self.file} are longer than the"
            f" {max_model_len} tokens the server takes (max_model_len): set dataset.skip_long: true",
        )
        require(bool(short), f"no row of {self.file} fits into max_model_len {max_model_len}")
        return replace(self, counted=short)

    def __post_init__(self) -> None:
        require_positive("dataset.", self, "rows_max")
        require(self.rows_max <= 10_000, f"dataset.rows_max must be at most 10,000, got {self.rows_max}")


def dataset_rows(dataset: Dataset, seed: int) -> Mapping[int, DatasetRow]:
    """The sampled rows by their number in the file. Raises ScenarioError when the file cannot be used."""
    return read_rows(dataset.file, dataset.format, dataset.rows_max, seed, stamp(dataset.file))


def counted(
    dataset: Dataset,
    seed: int,
    output_tokens: Lengths | None,
    session: Session | None = None,
    *,
    count_prompt: Callable[[DatasetRow], int],
    count_answer: Callable[[str], int],
) -> Dataset:
    """The dataset with the length of every sampled row, the prompt as it will be sent.

    An answer is as long as `output_tokens` says, where that is given; else as it was recorded. session: how
    conversations are replayed, those that its context_tokens_max has no room for left out; None: only their
    first exchange. Raises ScenarioError where nothing says how long an answer is.
    """

    def answer_tokens(number: int, turn: int, row: DatasetRow) -> int:
        if output_tokens is not None:
            of = f"{number}/{turn}" if turn else number
            return output_tokens.at(random.Random(f"answer {seed}/{of}").random())  # noqa: S311
        if row.output_tokens is not None:
            return row.output_tokens
        require(
            row.answer is not None,
            f"dataset {dataset.file}, row {number} has no output_tokens: add them or give output_tokens",
        )
        return count_answer(row.answer or "")

    def count(number: int, row: DatasetRow) -> Counted | None:
        turns: list[tuple[int, int]] = []
        longer = 0  # all answers so far than those that were recorded
        for turn in range(1 if session is None else 1 + len(row.later)):
            request = row.until(turn)
            prompt, answer = count_prompt(request) + longer, answer_tokens(number, turn, request)
            if session is not None and not session.has_room(prompt + answer):
                break
            turns.append((prompt, answer))
            if session is not None and session.answers == "served" and output_tokens is not None:
                longer += answer - count_answer(request.answer or "")
        return Counted(number, *turns[0], tuple(turns[1:])) if turns else None

    found = (count(number, row) for number, row in dataset_rows(dataset, seed).items())
    rows = tuple(row for row in found if row is not None)
    require(bool(rows), f"session.context_tokens_max has no room for any conversation of {dataset.file}")
    return replace(dataset, counted=rows, is_guess=False)


def guessed_tokens(row: DatasetRow) -> int:
    """From the text's bytes, until a server has counted."""
    texts = [row.prompt] if isinstance(row.prompt, str) else [message["content"] for message in row.prompt]
    return guessed_text_tokens("".join(texts))


def guessed_text_tokens(text: str) -> int:
    return max(1, len(text.encode()) // TEXT_BYTES_PER_TOKEN)
