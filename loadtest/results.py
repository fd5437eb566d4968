"""The rows of a run, folded: sealed for good once their writers are gone, and read for a report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from loadtest.columns import columns_of
from loadtest.records import Event, RequestIssued, RequestRecord, Sample
from loadtest.request_table import Part, RequestTable, part_of
from loadtest.row_file import Damage
from loadtest.run_folder import RunFolder
from loadtest.samples import HeldSamples
from loadtest.seal import SealedSegment, open_sealed, seal, sealed_path
from loadtest.segment_text import Key, read_segment
from loadtest.segments import SEGMENT


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRows:
    """Everything a report is made of, each part in order of time; see samples.py for runs of days."""

    requests: RequestTable
    samples: tuple[Sample, ...]
    events: tuple[Event, ...]
    damage: Damage


def finalise(folder: RunFolder) -> RunRows:
    """Seals every segment whose writer is gone and returns what the run holds. Idempotent; also the recovery.

    Raises RowFileError when the disk refuses, DamagedSegmentError when sealed rows are lost.
    """
    seal_all(folder)
    return load_results(folder)


def seal_all(folder: RunFolder) -> None:
    """The first half of `finalise`: reads no row that is no request's. Raises RowFileError."""
    texts = folder.text_segments()
    last = _last_of_each(texts)
    for text in texts:
        seal(text, is_last=text in last)


def _last_of_each(texts: Iterable[Path]) -> set[Path]:
    """The segment that each writer may still be at."""
    last: dict[str, Path] = {}
    for text in texts:  # in order
        named = SEGMENT.fullmatch(text.name)
        last[named["stem"] if named else text.name] = text
    return set(last.values())


def load_results(folder: RunFolder) -> RunRows:
    """The rows of a folder as they are; changes nothing in it. Raises DamagedSegmentError.

    A request that was issued and never ended belonged to a worker that died: it becomes a client_lost
    record that ends with the run's last row, so issued = sum of outcomes always.
    """
    damage = Damage()
    samples, events = _looks(folder, damage)
    requests = _Requests(damage)
    texts = folder.text_segments()  # first: a sealer may be at work, and the text goes last
    sealed = {path.name.split(".")[0]: path for path in folder.sealed_segments()}
    for path in sealed.values():
        requests.add_sealed(open_sealed(path))
    for text in texts:
        if text.stem not in sealed:
            requests.add_text(text)
    looked_ns = max([s.at_ns for s in samples] + [e.at_ns for e in events], default=0)
    return RunRows(requests=requests.table(looked_ns), samples=samples, events=events, damage=damage)


def _looks(folder: RunFolder, damage: Damage) -> tuple[tuple[Sample, ...], tuple[Event, ...]]:
    samples = HeldSamples()
    events: list[Event] = []
    for row in folder.rows(damage):
        match row:
            case Sample():
                samples.add(row)
            case Event():
                events.append(row)
    return samples.in_order(), tuple(sorted(events, key=lambda e: e.at_ns))


class _Requests:
    """Gathers the segments of a run and pairs what was issued in one and ended in another."""

    def __init__(self, damage: Damage) -> None:
        self._damage = damage
        self._parts: list[Part] = []
        self._pending: dict[Key, RequestIssued] = {}
        self._late: set[Key] = set()

    def add_text(self, text: Path) -> None:
        try:
            rows = read_segment(text)
        except FileNotFoundError:
            path = sealed_path(text)  # it was sealed this moment
            if path is None:
                raise
            self.add_sealed(open_sealed(path))
            return
        self._parts += part_of(rows.ended)
        self._note(rows.damage, rows.pending, rows.late)

    def add_sealed(self, sealed: SealedSegment) -> None:
        self._parts += [_sealed_part(sealed)] if sealed.rows else []
        self._note(sealed.damage, sealed.pending, sealed.late)

    def _note(self, damage: Damage, pending: dict[Key, RequestIssued], late: Iterable[Key]) -> None:
        self._damage.torn_tails += damage.torn_tails
        self._damage.bad_lines += damage.bad_lines
        self._pending.update(pending)
        self._late.update(late)

    def table(self, looked_ns: int) -> RequestTable:
        last_ns = max([looked_ns, *(part.done_last_ns for part in self._parts)])
        lost = [_client_lost(row, last_ns) for key, row in self._pending.items() if key not in self._late]
        return RequestTable((*self._parts, *part_of(columns_of(lost))))


def _sealed_part(sealed: SealedSegment) -> Part:
    about = sealed.about
    return Part(
        rows=sealed.rows,
        intended_first_ns=about["intended_first_ns"],
        intended_last_ns=about["intended_last_ns"],
        done_last_ns=about["done_last_ns"],
        read=sealed.columns,
    )


def _client_lost(issued: RequestIssued, last_ns: int) -> RequestRecord:
    return RequestRecord(
        worker=issued.worker,
        seq=issued.seq,
        outcome="client_lost",
        endpoint=issued.endpoint,
        planned_input_tokens=issued.planned_input_tokens,
        planned_output_tokens=issued.planned_output_tokens,
        intended_ns=issued.intended_ns,
        model=issued.model,
        session=issued.session,
        turn=issued.turn,
        done_ns=max(last_ns, issued.intended_ns),
        error="the worker ended before this request did",
    )
