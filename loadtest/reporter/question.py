"""Questions about the requests of a run, asked together: a sealed file is unpacked once for all. Pure.

A question is a generator. It yields what it needs, is sent the rows part by part and None after the last one,
and then returns its answer, or yields a need once more: it must see them again.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from loadtest.columns import Columns
from loadtest.request_table import RequestTable

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """At least every row that was under way at some time in [start, end], with at least these columns."""

    names: frozenset[str]
    start_ns: int
    end_ns: int


Question = Generator[Need, Columns | None, T]


class Span(Protocol):
    """A time of the load that is judged, such as a Window."""

    @property
    def settled_ns(self) -> int: ...
    @property
    def end_ns(self) -> int: ...


def answer(requests: RequestTable, question: Question[T]) -> T:
    """Shows a question all that it wants to see. No more than one part is held at a time."""
    try:
        need = next(question)
        while True:
            for rows in requests.alive_in(need.names, need.start_ns, need.end_ns):
                question.send(rows)
            need = question.send(None)
    except StopIteration as end:
        found: T = end.value
        return found


def together(**questions: Question[Any]) -> Question[dict[str, Any]]:
    """The answers to several questions by their names, from the same looks at the rows."""
    answers: dict[str, Any] = {}
    open_ones: dict[str, Need] = {}

    def go_on(name: str) -> None:
        """To the first need of a question, or from the end of a pass to its next one."""
        open_ones.pop(name, None)
        try:
            open_ones[name] = next(questions[name])
        except StopIteration as end:
            answers[name] = end.value

    for name in questions:
        go_on(name)
    while open_ones:
        need = _all_of(open_ones.values())
        while (rows := (yield need)) is not None:
            for name in open_ones:
                questions[name].send(rows)
        for name in list(open_ones):
            go_on(name)
    return answers


def _all_of(needs: Iterable[Need]) -> Need:
    several = list(needs)
    return Need(
        names=frozenset().union(*(need.names for need in several)),
        start_ns=min(need.start_ns for need in several),
        end_ns=max(need.end_ns for need in several),
    )


def need_of(names: Iterable[str], spans: Sequence[Span]) -> Need:
    """What a question about the requests of these spans needs; nothing where there is none."""
    return Need(
        names=frozenset({*names, "intended_ns"}),
        start_ns=min((span.settled_ns for span in spans), default=0),
        end_ns=max((span.end_ns for span in spans), default=-1),
    )


def started(rows: Columns, spans: Iterable[Span]) -> Iterator[Columns]:
    """The rows of a part that were intended in each of the spans; nothing of a span without one."""
    for span in spans:
        first, last = np.searchsorted(rows["intended_ns"], (span.settled_ns, span.end_ns)).tolist()
        if first < last:
            yield rows.between(first, last)
