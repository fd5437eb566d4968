"""The printed form of the rows a load writes for every request: JSON whose values stand in columns.

Padded with spaces, all such lines of one kind are equally long: one `%` prints them, at a fifth of a JSON
encoder's cost, and numpy reads a million of them as one matrix of bytes (columns.py). A row that does not
fit its columns, such as one with an error text, is plain JSON; both mean the same to any JSON reader.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii
from operator import attrgetter
from typing import Any, Final, Literal

from loadtest.records import ROW_SCHEMA, RequestIssued, RequestRecord

ColumnKind = Literal["int", "float", "flag", "word"]

_WIDTH_OF: Final[Mapping[ColumnKind, int]] = {"int": 10, "float": 14, "flag": 5, "word": 20}
_WIDTHS: Final = {"worker": 5, "seq": 12, "error": 4, "model": 40, "session": 12, "turn": 5}
"""Of an error only `null` fits: its text would make every good row longer."""
_WIDTH_NS: Final = 19
DECIMALS: Final = 9
"""Of seconds: what was measured in nanoseconds comes back to the last bit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """Where one value stands in the payload: bytes [start, end)."""

    name: str
    kind: ColumnKind
    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How the rows of one type are printed; `blank` is a payload whose values are all spaces."""

    template: str
    blank: bytes
    cells: tuple[Cell, ...]
    values: Callable[[Any], tuple[Any, ...]]

    @property
    def width(self) -> int:
        return len(self.blank)


def column_kinds(row_type: type[Any]) -> dict[str, ColumnKind]:
    """What each field of a row type holds, None apart. Raises TypeError for what no column can hold."""
    hints = typing.get_type_hints(row_type)
    return {field.name: _kind(field.name, hints[field.name]) for field in dataclasses.fields(row_type)}


def _kind(name: str, hint: Any) -> ColumnKind:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (hint,) = (arm for arm in typing.get_args(hint) if arm is not types.NoneType)
    if typing.get_origin(hint) is Literal:
        hint = str
    kinds: dict[Any, ColumnKind] = {int: "int", float: "float", bool: "flag", str: "word"}
    if hint not in kinds:
        raise TypeError(f"field {name!r}: a row holds numbers, flags and words, not {hint}")
    return kinds[hint]


def _form(kind: str, row_type: type[Any]) -> Form:
    template = blank = f'{{"kind":"{kind}","schema":{ROW_SCHEMA}'
    cells = []
    for name, column in column_kinds(row_type).items():
        width = _WIDTHS.get(name, _WIDTH_NS if name.endswith("_ns") else _WIDTH_OF[column])
        template += f',"{name}":%{width}s'
        blank += f',"{name}":'
        cells.append(Cell(name=name, kind=column, start=len(blank), end=len(blank) + width))
        blank += " " * width
    names = (field.name for field in dataclasses.fields(row_type))
    blank += "}"
    return Form(
        template=template + "}", blank=blank.encode("ascii"), cells=tuple(cells), values=attrgetter(*names)
    )


def _float_text(value: float) -> str:
    text = f"{value:.{DECIMALS}f}"
    return text if float(text) == value else repr(value)


_TEXT_OF: Final[Mapping[type, Callable[[Any], str]]] = {
    types.NoneType: lambda _: "null",
    bool: lambda value: "true" if value else "false",
    float: _float_text,
    # ensure_ascii keeps lone surrogates and control characters of a hostile server inert
    str: encode_basestring_ascii,
}

ISSUED: Final = _form("issued", RequestIssued)
REQUEST: Final = _form("request", RequestRecord)


def printed(row: RequestIssued | RequestRecord) -> bytes | None:
    """The row's JSON in columns; None when a value is wider than its column, or no JSON value at all."""
    form = REQUEST if type(row) is RequestRecord else ISSUED
    try:
        text = form.template % tuple(
            [value if type(value) is int else _TEXT_OF[type(value)](value) for value in form.values(row)]
        )
    except KeyError:
        return None
    return text.encode("ascii") if len(text) == form.width else None
