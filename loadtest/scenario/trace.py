"""Recorded traffic: which request came when, and how long it was; Mooncake's, Azure's or a plain CSV file.

Only lengths and times are recorded, so the prompts are made anew; Mooncake's names of blocks say which
prompts began alike, and these do again.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TextIO, TypeVar

from estimator.spec import Lengths
from loadtest.scenario.parts import STRICT, ScenarioError, lengths_of, require, require_positive, stamp

TraceFormat = Literal["mooncake", "azure", "csv"]
MOONCAKE_BLOCK_TOKENS: Final = 512
ROWS_MAX: Final = 100_000
LINE_BYTES_MAX: Final = 1_000_000
TOKENS_MAX: Final = 10_000_000
_Raw = TypeVar("_Raw")


class TraceRow(NamedTuple):
    """One request of a trace; `blocks` names each 512 tokens of its prompt, where that was recorded."""

    at_s: float
    input_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()

    @property
    def tokens(self) -> int:
        return self.input_tokens + self.output_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSeen:
    """What a trace holds, so that it can be predicted from the scenario alone."""

    __pydantic_config__ = STRICT

    rows: int
    span_s: float
    request_tokens_max: int
    input_tokens: Lengths
    output_tokens: Lengths


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A recording and how it is played. `request_tokens_max` cuts longer requests, where `clip` allows."""

    __pydantic_config__ = STRICT

    file: str
    format: TraceFormat
    speed: float = 1.0
    clip: bool = False
    rows_max: int = ROWS_MAX
    request_tokens_max: int | None = None
    seen: TraceSeen | None = None
    """Written by the reader of the scenario."""

    def __post_init__(self) -> None:
        require_positive("trace.", self, "speed", "rows_max", "request_tokens_max")
        require(
            self.clip or self.request_tokens_max is None,
            "trace.request_tokens_max cuts requests: allow it with clip: true",
        )


def looked_at(trace: Trace) -> Trace:
    """The trace with what its file holds. Raises ScenarioError when the file cannot be used."""
    rows = trace_rows(replace(trace, seen=None))
    return replace(
        trace,
        seen=TraceSeen(
            rows=len(rows),
            span_s=rows[-1].at_s,
            request_tokens_max=max(row.tokens for row in rows),
            input_tokens=lengths_of(row.input_tokens for row in rows),
            output_tokens=lengths_of(row.output_tokens for row in rows),
        ),
    )


def fitted(trace: Trace, max_model_len: int) -> Trace:
    """The trace as such a server can take it. Raises ScenarioError where it must not be cut."""
    over = sum(row.tokens > max_model_len for row in trace_rows(trace))
    if not over:
        return trace
    require(
        trace.clip,
        f"{over:,} requests of {trace.file} are longer than the {max_model_len:,} tokens the server takes "
        "(max_model_len): set trace.clip: true to cut them",
    )
    return looked_at(replace(trace, request_tokens_max=max_model_len))


def trace_rows(trace: Trace) -> tuple[TraceRow, ...]:
    """In order of time, the first at 0 s as recorded: `speed` is applied by whoever plays them.

    A length of 0 becomes 1. Raises ScenarioError, which names the first wrong line.
    """
    return _rows(trace.file, trace.format, trace.rows_max, trace.request_tokens_max, stamp(trace.file))


@lru_cache(maxsize=2)
def _rows(
    file: str, form: TraceFormat, rows_max: int, tokens_max: int | None, _: int
) -> tuple[TraceRow, ...]:
    try:
        with Path(file).open(encoding="utf-8-sig", newline="") as text:
            rows = sorted(islice(_READERS[form](text, file), rows_max))
    except (OSError, UnicodeDecodeError) as error:
        raise ScenarioError(f"cannot read trace {file}: {error}") from error
    require(bool(rows), f"trace {file} has no rows")
    start_s = rows[0].at_s
    return tuple(_cut(row._replace(at_s=row.at_s - start_s), tokens_max) for row in rows)


def _cut(row: TraceRow, tokens_max: int | None) -> TraceRow:
    """The answer is shortened first, to one token at the least, then the prompt."""
    if tokens_max is None or row.tokens <= tokens_max:
        return row
    answer = max(1, tokens_max - row.input_tokens)
    return row._replace(input_tokens=min(row.input_tokens, max(1, tokens_max - answer)), output_tokens=answer)


def _mooncake(text: TextIO, file: str) -> Iterator[TraceRow]:
    for number, line in enumerate(_lines(text, file), 1):
        if line.strip():
            yield _named(f"{file}, line {number}", _mooncake_row, line)


def _mooncake_row(line: str) -> TraceRow:
    row = json.loads(line)
    return TraceRow(
        at_s=_seconds(row["timestamp"]) / 1000,
        input_tokens=_tokens(row["input_length"]),
        output_tokens=_tokens(row["output_length"]),
        blocks=tuple(int(name) for name in row.get("hash_ids", ())),
    )


def _azure(text: TextIO, file: str) -> Iterator[TraceRow]:
    return _table(text, file, ("TIMESTAMP", "ContextTokens", "GeneratedTokens"), _wall_s)


def _plain(text: TextIO, file: str) -> Iterator[TraceRow]:
    return _table(text, file, ("at_s", "input_tokens", "output_tokens"), _seconds)


def _table(
    text: TextIO, file: str, columns: tuple[str, str, str], seconds: Callable[[Any], float]
) -> Iterator[TraceRow]:
    def row_of(row: dict[str, Any]) -> TraceRow:
        at, prompt, answer = (row[column] for column in columns)
        return TraceRow(at_s=seconds(at), input_tokens=_tokens(prompt), output_tokens=_tokens(answer))

    table = csv.DictReader(_lines(text, file))
    missing = [name for name in columns if name not in (table.fieldnames or ())]
    require(not missing, f"trace {file} has no column {', '.join(missing)}; it needs {', '.join(columns)}")
    for row in table:
        yield _named(f"{file}, line {table.line_num}", row_of, row)


def _named(where: str, row_of: Callable[[_Raw], TraceRow], raw: _Raw) -> TraceRow:
    """Whatever is wrong with a row becomes one sentence that says where."""
    try:
        return row_of(raw)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ScenarioError(f"trace {where}: {what}") from error


def _lines(text: TextIO, file: str) -> Iterator[str]:
    while line := text.readline(LINE_BYTES_MAX + 1):
        require(len(line) <= LINE_BYTES_MAX, f"trace {file} has a line of more than {LINE_BYTES_MAX:,} bytes")
        yield line


def _seconds(value: Any) -> float:
    seconds = float(value)
    if not math.isfinite(seconds):
        raise ValueError(f"{value!r} is no time")
    return seconds


def _wall_s(value: str) -> float:
    moment = datetime.fromisoformat(value.strip())
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _tokens(value: Any) -> int:
    tokens = int(value)
    if not 0 <= tokens <= TOKENS_MAX:
        raise ValueError(f"{value!r} is no number of tokens")
    return max(tokens, 1)


_READERS: Final[Mapping[TraceFormat, Callable[[TextIO, str], Iterator[TraceRow]]]] = {
    "mooncake": _mooncake,
    "azure": _azure,
    "csv": _plain,
}
