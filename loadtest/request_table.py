"""The requests of a run as columns that are read part by part: ten million need no more memory than a few.

A part is one sealed segment, or rows that are at hand. Only the columns that are named are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from loadtest.columns import NAMES, Columns, columns_of, joined
from loadtest.records import RequestRecord

ORDER = ("intended_ns", "worker", "seq")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Some rows, at least one, sorted by (intended_ns, worker, seq); `read` gives the columns asked for."""

    rows: int
    intended_first_ns: int
    intended_last_ns: int
    done_last_ns: int
    read: Callable[[Iterable[str]], Columns]


@dataclass(frozen=True, slots=True)
class RequestTable:
    """All requests of a run. Iterating gives records in the order of a report."""

    parts: tuple[Part, ...]

    @classmethod
    def of(cls, records: Sequence[RequestRecord]) -> RequestTable:
        """A table of rows that are at hand."""
        return cls(tuple(part_of(columns_of(records))))

    def __len__(self) -> int:
        return sum(part.rows for part in self.parts)

    def __iter__(self) -> Iterator[RequestRecord]:
        for columns in self.in_order(NAMES):
            yield from columns.records()

    def columns(self, *names: str) -> Iterator[Columns]:
        """Every row once, in no order, part by part."""
        for part in self.parts:
            yield part.read(names)

    def alive_in(self, names: Iterable[str], start_ns: int, end_ns: int) -> Iterator[Columns]:
        """At least every row that was under way at some time in [start, end].

        Part by part in the order of their first intent, each part in the order of a report.
        """
        for part in sorted(self.parts, key=lambda part: part.intended_first_ns):
            if part.intended_first_ns <= end_ns and part.done_last_ns >= start_ns:
                yield part.read(names)

    def started_in(self, names: Iterable[str], start_ns: int, end_ns: int) -> Iterator[Columns]:
        """Exactly the rows that were intended in [start, end), in no order."""
        wanted = {*names, "intended_ns"}
        for part in self.parts:
            if part.intended_first_ns < end_ns and part.intended_last_ns >= start_ns:
                yield _between(part.read(wanted), start_ns, end_ns)

    def in_order(self, names: Iterable[str]) -> Iterator[Columns]:
        """Every row once, all in the order of a report: a merge that holds only the parts that overlap."""
        return _merged(self.parts, tuple({*names, *ORDER}))

    def started_in_order(self, names: Iterable[str], start_ns: int, end_ns: int) -> Iterator[Columns]:
        """The rows of `started_in`, in the order of a report."""
        parts = [p for p in self.parts if p.intended_first_ns < end_ns and p.intended_last_ns >= start_ns]
        for columns in _merged(parts, tuple({*names, *ORDER})):
            yield _between(columns, start_ns, end_ns)


def _merged(parts: Iterable[Part], names: Iterable[str]) -> Iterator[Columns]:
    waiting = sorted(parts, key=lambda part: part.intended_first_ns)
    held: list[Columns] = []
    for part, following in zip(waiting, [*waiting[1:], None], strict=False):
        held.append(part.read(names))
        if following is None:
            yield joined(held).in_order()
            return
        ready, held = _split(joined(held), following.intended_first_ns)
        if ready.rows:
            yield ready.in_order()


def _between(columns: Columns, start_ns: int, end_ns: int) -> Columns:
    inside = (columns["intended_ns"] >= start_ns) & (columns["intended_ns"] < end_ns)
    return columns if inside.all() else columns.take(inside)


def _split(columns: Columns, before_ns: int) -> tuple[Columns, list[Columns]]:
    is_ready = columns["intended_ns"] < before_ns
    rest = columns.take(~is_ready)
    return columns.take(is_ready), [rest] if rest.rows else []


def part_of(columns: Columns) -> list[Part]:
    """The part of columns that are at hand; none without rows."""
    if not columns.rows:
        return []
    intended_ns = columns["intended_ns"]
    ordered = columns.in_order()
    part = Part(
        rows=columns.rows,
        intended_first_ns=int(np.min(intended_ns)),
        intended_last_ns=int(np.max(intended_ns)),
        done_last_ns=int(np.max(columns["done_ns"])),
        read=lambda names: ordered.only({*names, *ORDER}),  # as many as a sealed part gives: they are joined
    )
    return [part]
