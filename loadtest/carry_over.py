"""Takes the rows of an interrupted run into the folder of the run that goes on, moved to its clock.

So that one folder holds everything, and whoever reads a run need not know that it has parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Final, TypeVar

import numpy as np

from estimator.errors import PlainError
from loadtest.columns import KINDS, NAMES, NULL, Columns
from loadtest.earlier_part import EarlierPart
from loadtest.records import Event, Row, StreamCounts
from loadtest.results import RunRows
from loadtest.row_file import Damage, RowWriter
from loadtest.run_folder import Manifest, RunFolder
from loadtest.seal import write_sealed
from loadtest.search_result import Probe, SearchResult
from loadtest.segment_text import SegmentRows

SECOND_NS: Final = 10**9
R = TypeVar("R", bound=Row)


class CarryOverError(PlainError):
    """The rows of the interrupted run could not be taken over: one sentence that names the fix."""


def shift_s_between(parent: Manifest, last_ns: int, *, wall_ns: int, mono_ns: int) -> int:
    """What to add to the parent's times: its clock began elsewhere if the machine was started again.

    In whole seconds, since streams are counted by the second; and so that `last_ns`, its last row, comes
    before `mono_ns` whatever was done to the calendar clock meanwhile.
    """
    apart_ns = (parent.wall_ns - parent.mono_ns) - (wall_ns - mono_ns)
    return min(round(apart_ns / SECOND_NS), (mono_ns - last_ns) // SECOND_NS)


def last_row_ns(rows: RunRows) -> int:
    """Of whatever kind; 0 without any."""
    looks = [*(row.at_ns for row in rows.samples[-1:]), *(row.at_ns for row in rows.events[-1:])]
    return max([*looks, *(part.done_last_ns for part in rows.requests.parts)], default=0)


def events_until(events: Sequence[Event], cut_ns: int, *, stages_held: int, run_id: str) -> list[Event]:
    """What the part that follows is told. From `cut_ns` on nothing is judged any more: a mark there ends the
    last stage that was held, and what came later is kept as notes.
    """
    cut = Event(at_ns=cut_ns, event="cut", data={"index": stages_held, "run": run_id})
    kept = [event for event in events if event.at_ns < cut_ns]
    later = [
        replace(event, event="note", data={"was": event.event, **event.data})
        for event in events
        if event.at_ns >= cut_ns
    ]
    return [*kept, cut, *later]


def moved_search(found: SearchResult, shift_s: int) -> SearchResult:
    """The same levels on the clock of the run that goes on."""
    return replace(found, probes=tuple(_moved_probe(probe, shift_s) for probe in found.probes))


def _moved_probe(probe: Probe, shift_s: int) -> Probe:
    settled_s = None if probe.settled_s is None else probe.settled_s + shift_s
    return replace(
        probe, began_s=probe.began_s + shift_s, settled_s=settled_s, ended_s=probe.ended_s + shift_s
    )


def carry_over(
    parent: RunFolder, rows: RunRows, events: Iterable[Event], into: RunFolder, part: EarlierPart
) -> None:
    """Writes every row of `parent` into the new folder. Raises CarryOverError, RowFileError."""
    shift_ns = part.shift_s * SECOND_NS
    damage = Damage()
    try:
        counts = parent.stream_counts(damage)
        _write(into, "streams", counts, lambda row: _moved_counts(row, part.shift_s))
        _write(into, "samples", rows.samples, lambda row: replace(row, at_ns=row.at_ns + shift_ns))
        _write(into, "events", events, lambda row: replace(row, at_ns=row.at_ns + shift_ns))
        for number, segment in enumerate(rows.requests.parts):
            # what was lost stays known; once is enough
            lost = replace(rows.damage) if number == 0 else Damage()
            moved = SegmentRows(ended=moved_columns(segment.read(NAMES), shift_ns), damage=lost)
            write_sealed(moved, into.carried_path("records"))
    except OSError as error:
        raise CarryOverError(
            f"cannot take the rows of {parent.root} into {into.root}: {error.strerror}; free space and rerun"
        ) from error


def moved_columns(columns: Columns, shift_ns: int) -> Columns:
    """Times that were seen, later by so much."""
    arrays = {
        name: np.where(array == NULL, NULL, array + shift_ns)
        if KINDS[name] == "int" and name.endswith("_ns")
        else array
        for name, array in columns.arrays.items()
    }
    return replace(columns, arrays=arrays)


def _moved_counts(row: StreamCounts, shift_s: int) -> StreamCounts:
    chunks = {str(int(second) + shift_s): count for second, count in row.chunks.items()}
    return replace(row, second=row.second + shift_s, chunks=chunks)


def _write(into: RunFolder, kind: str, rows: Iterable[R], moved: Callable[[R], R]) -> None:
    writer = RowWriter(into.carried_path(kind))  # type: ignore[arg-type]
    try:
        for row in rows:
            writer.append(moved(row))
        writer.sync()
    finally:
        writer.close()
