"""The requests of a run in the formats of other tools: CSV, Parquet, SQLite. Streamed, a part at a time."""

from __future__ import annotations

import csv
import importlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

from estimator.errors import PlainError
from loadtest.columns import KINDS, NAMES, NULL, Columns
from loadtest.records import RequestRecord
from loadtest.request_table import RequestTable

FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r")


class ExportError(PlainError):
    """An export cannot be made: the message is one sentence that names the fix."""


def write_csv(requests: RequestTable, path: Path) -> None:
    """One line a request, in order of its start; what was not seen is empty. Raises ExportError.

    A text that a spreadsheet would take for a formula begins with an apostrophe.
    """
    with _replaced(path) as draft, draft.open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(NAMES)
        lines.writerows([inert(value) for value in _values(record)] for record in requests)


def _values(record: RequestRecord) -> list[Any]:
    return [getattr(record, name) for name in NAMES]


def inert(value: Any) -> Any:
    if isinstance(value, str):
        # SQLite and CSV are UTF-8: a lone surrogate of a hostile server is no character
        value = value.encode("utf-8", "backslashreplace").decode("utf-8")
        return f"'{value}" if value.startswith(FORMULA_STARTS) else value
    return value


def write_sqlite(requests: RequestTable, path: Path) -> None:
    """One table, `requests`, with a column for each field. Raises ExportError."""
    with _replaced(path) as draft:
        database = sqlite3.connect(draft)
        try:
            with database:
                database.execute(f"CREATE TABLE requests ({', '.join(NAMES)}, UNIQUE (worker, seq))")
                marks = ", ".join("?" * len(NAMES))
                database.executemany(
                    f"INSERT INTO requests VALUES ({marks})",  # noqa: S608  (only question marks)
                    ([_text(value) for value in _values(record)] for record in requests),
                )
        finally:
            database.close()


def _text(value: Any) -> Any:
    return value.encode("utf-8", "backslashreplace").decode("utf-8") if isinstance(value, str) else value


def write_parquet(requests: RequestTable, path: Path) -> None:
    """One row a request, zstd; needs pyarrow, an extra of this package. Raises ExportError."""
    try:
        arrow = importlib.import_module("pyarrow")
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise ExportError("--parquet needs pyarrow: pip install 'ullage[parquet]'") from error
    types = {"int": arrow.int64(), "float": arrow.float64(), "flag": arrow.bool_(), "word": arrow.string()}
    schema = arrow.schema([(name, types[KINDS[name]]) for name in NAMES])
    with (
        _replaced(path) as draft,
        parquet.ParquetWriter(draft, schema, compression="zstd") as writer,
    ):
        for rows in requests.in_order(NAMES):
            arrays = [_arrow_array(arrow.array, rows, name, types[KINDS[name]]) for name in NAMES]
            writer.write_table(arrow.Table.from_arrays(arrays, schema=schema))


def _arrow_array(array: Callable[..., Any], rows: Columns, name: str, of_type: Any) -> Any:
    values = rows[name]
    match KINDS[name]:
        case "int":
            return array(values, type=of_type, mask=values == NULL)
        case "float":
            return array(values, type=of_type, mask=np.isnan(values))
        case "word":
            words = [_text(word) for word in rows.words[name]]
            return array([words[code] for code in values.tolist()], type=of_type)
        case "flag":
            return array(values, type=of_type)


@contextmanager
def _replaced(path: Path) -> Iterator[Path]:
    """A draft beside `path` that takes its name when it is whole."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        draft.unlink(missing_ok=True)
        yield draft
        draft.chmod(0o600)
        draft.replace(path)
    except (OSError, sqlite3.Error) as error:
        raise ExportError(f"cannot write {path}: {error}") from error
    finally:
        draft.unlink(missing_ok=True)
