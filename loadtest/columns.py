"""Requests as numpy columns: made from records, cut, joined, and packed into the bytes of one file.

A time or count that was not seen is NULL, a figure NaN; words are codes into a list. Sealed files hold times
as distances from `intended_ns`, every column in the fewest bytes that hold it, deflated.
"""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from loadtest.records import RequestRecord
from loadtest.row_form import ColumnKind, column_kinds

NULL: Final = int(np.iinfo(np.int64).min)
KINDS: Final[Mapping[str, ColumnKind]] = column_kinds(RequestRecord)
NAMES: Final = tuple(KINDS)
DEFAULTS: Final = {
    field.name: field.default
    for field in dataclasses.fields(RequestRecord)
    if field.default is not dataclasses.MISSING
}
DTYPES: Final[Mapping[ColumnKind, Any]] = {
    "int": np.int64,
    "float": np.float64,
    "flag": np.bool_,
    "word": np.int32,
}
DEFLATE_LEVEL: Final = 1

Array = NDArray[Any]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Columns:
    """Some fields of `rows` requests; `words` says what the codes of a word column mean."""

    rows: int
    arrays: Mapping[str, Array]
    words: Mapping[str, tuple[str | None, ...]]

    def __getitem__(self, name: str) -> Array:
        return self.arrays[name]

    def among(self, name: str, wanted: Collection[str]) -> Flags:
        """Which rows hold one of these words."""
        table = np.array([word in wanted for word in self.words[name]] or [False], np.bool_)
        return np.asarray(table[self.arrays[name]])

    def word_counts(self, name: str) -> dict[str | None, int]:
        counts = np.bincount(self.arrays[name], minlength=len(self.words[name]))
        return {word: int(count) for word, count in zip(self.words[name], counts, strict=True) if count}

    def take(self, where: Array) -> Columns:
        """The rows of a mask or of indices."""
        at = np.flatnonzero(where) if where.dtype == np.bool_ else where  # once, and not for every column
        return Columns(len(at), {name: array[at] for name, array in self.arrays.items()}, self.words)

    def between(self, first: int, last: int) -> Columns:
        """The rows from index `first` up to `last`, not copied."""
        arrays = {name: array[first:last] for name, array in self.arrays.items()}
        return Columns(last - first, arrays, self.words)

    def only(self, names: Collection[str]) -> Columns:
        """These columns of all rows."""
        return Columns(
            self.rows,
            {name: array for name, array in self.arrays.items() if name in names},
            {name: words for name, words in self.words.items() if name in names},
        )

    def in_order(self) -> Columns:
        """By (intended_ns, worker, seq): the order of a report."""
        return self.take(np.lexsort((self.arrays["seq"], self.arrays["worker"], self.arrays["intended_ns"])))

    def records(self) -> Iterator[RequestRecord]:
        """The rows themselves; every field must be there."""
        for values in zip(*(_python(self, name) for name in NAMES), strict=True):
            yield RequestRecord(**dict(zip(NAMES, values, strict=True)))


def _python(columns: Columns, name: str) -> list[Any]:
    array = columns[name]
    match KINDS[name]:
        case "int":
            return [None if value == NULL else value for value in array.tolist()]
        case "float":
            return [None if value != value else value for value in array.tolist()]
        case "flag":
            return list(array.tolist())
        case "word":
            words = columns.words[name]
            return [words[code] for code in array.tolist()]


def columns_of(records: Sequence[RequestRecord]) -> Columns:
    """The columns of rows that are at hand as objects."""
    arrays: dict[str, Array] = {}
    words: dict[str, tuple[str | None, ...]] = {}
    for name, kind in KINDS.items():
        values: list[Any] = [getattr(record, name) for record in records]
        if kind == "word":
            known = {word: code for code, word in enumerate(dict.fromkeys(values))}
            values, words[name] = [known[word] for word in values], tuple(known)
        elif kind == "int":
            values = [NULL if value is None else value for value in values]
        arrays[name] = np.array(values, DTYPES[kind])
    return Columns(len(records), arrays, words)


def joined(parts: Sequence[Columns]) -> Columns:
    """All rows of all parts, in their order; the parts hold the same columns."""
    if len(parts) == 1:
        return parts[0]
    names = parts[0].arrays if parts else NAMES
    arrays: dict[str, Array] = {}
    words: dict[str, tuple[str | None, ...]] = {}
    for name in names:
        dtype = DTYPES[KINDS[name]]
        pieces = [part[name] for part in parts]
        if KINDS[name] == "word":
            known: dict[str | None, int] = {}
            pieces = []
            for part in parts:
                table = [known.setdefault(word, len(known)) for word in part.words[name]]
                pieces.append(np.array(table or [0], np.int32)[part[name]])
            words[name] = tuple(known)
        arrays[name] = np.concatenate([np.empty(0, dtype), *pieces]).astype(dtype, copy=False)
    return Columns(sum(part.rows for part in parts), arrays, words)


class DamagedColumns(Exception):  # noqa: N818  (what was found, not what went wrong)
    """A sealed file does not hold what it should; the caller knows its name."""


def packed(columns: Columns, about: Mapping[str, Any]) -> bytes:
    """The bytes of a sealed file: an .npz that numpy.load opens, with `about.json` beside the columns.

    The same rows give the same bytes.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        _add(archive, "about.json", json.dumps({**about, "words": columns.words}).encode("ascii"))
        for name in NAMES:
            _add(archive, f"{name}.npy", _npy(_narrowed(columns, name)))
    return buffer.getvalue()


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    entry = zipfile.ZipInfo(name)  # dated 1980: no clock in the bytes
    entry.compress_type = zipfile.ZIP_DEFLATED
    archive.writestr(entry, content, compresslevel=DEFLATE_LEVEL)


def _npy(array: Array) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _is_distance(name: str) -> bool:
    return name.endswith("_ns") and name != "intended_ns"


def _narrowed(columns: Columns, name: str) -> Array:
    """The fewest bytes that hold the column; an integer type's lowest value stands for NULL."""
    array = columns[name]
    if KINDS[name] != "int":
        return array
    missing = array == NULL
    values = array - columns["intended_ns"] if _is_distance(name) else array
    seen = values[~missing]
    low, high = (int(seen.min()), int(seen.max())) if len(seen) else (0, 0)
    dtype = next(
        kind
        for kind in (np.int8, np.int16, np.int32, np.int64)
        if np.iinfo(kind).min < low and high <= np.iinfo(kind).max
    )
    return np.where(missing, np.iinfo(dtype).min, values).astype(dtype)


def read_about(content: zipfile.ZipFile) -> dict[str, Any]:
    """What `packed` was told. Raises DamagedColumns."""
    about: dict[str, Any] = json.loads(_member(content, "about.json"))
    return about


def unpacked(content: zipfile.ZipFile, names: Iterable[str], about: Mapping[str, Any]) -> Columns:
    """These columns of a sealed file; one the file is too old to hold has its field's default.

    Raises DamagedColumns.
    """
    rows = int(about["rows"])
    held = set(content.namelist())
    arrays: dict[str, Array] = {}
    words: dict[str, tuple[str | None, ...]] = {}
    wanted = set(names)
    if any(_is_distance(name) for name in wanted):
        wanted.add("intended_ns")
    for name in [name for name in NAMES if name in wanted]:  # intended_ns comes before what needs it
        if f"{name}.npy" not in held:
            arrays[name], words[name] = _default(name, rows)
            continue
        arrays[name] = _widened(name, _array(content, name), arrays)
        words[name] = tuple(about["words"].get(name, ()))
    return Columns(rows, arrays, {name: words[name] for name in words if KINDS[name] == "word"})


def _default(name: str, rows: int) -> tuple[Array, tuple[str | None, ...]]:
    value = DEFAULTS[name]
    match KINDS[name]:
        case "word":
            return np.zeros(rows, np.int32), (value,)
        case "int":
            return np.full(rows, NULL if value is None else value, np.int64), ()
        case kind:
            return np.full(rows, np.nan if value is None else value, DTYPES[kind]), ()


def _array(content: zipfile.ZipFile, name: str) -> Array:
    array: Array = np.lib.format.read_array(io.BytesIO(_member(content, f"{name}.npy")), allow_pickle=False)
    return array


def _widened(name: str, stored: Array, arrays: Mapping[str, Array]) -> Array:
    if KINDS[name] != "int":
        return stored
    missing = stored == np.iinfo(stored.dtype).min
    values = stored.astype(np.int64)
    if _is_distance(name):
        values += arrays["intended_ns"]
    values[missing] = NULL
    return values


def _member(content: zipfile.ZipFile, name: str) -> bytes:
    try:
        return content.read(name)
    except (
        zipfile.BadZipFile,
        zlib.error,
        KeyError,
        ValueError,
        EOFError,
        NotImplementedError,
        OSError,
    ) as error:
        raise DamagedColumns(f"{name}: {error}") from error
