"""Rows -> results.sqlite -> rows: the fold that ends a run, and also recovers one that was killed."""

from __future__ import annotations

import dataclasses
import json
import os
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from loadtest.records import Event, RequestIssued, RequestRecord, Sample
from loadtest.row_file import Damage
from loadtest.run_folder import RunFolder, RunFolderError


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRows:
    """Everything a report is made of, each list in order of time."""

    requests: tuple[RequestRecord, ...]
    samples: tuple[Sample, ...]
    events: tuple[Event, ...]
    damage: Damage


def finalise(folder: RunFolder) -> RunRows:
    """Folds all row files into results.sqlite and returns what it holds. Idempotent; also the recovery.

    A request that was issued and never ended belonged to a worker that died: it becomes a client_lost
    record that ends with the run's last row, so issued = sum of outcomes always.
    """
    damage = Damage()
    issued: dict[tuple[int, int], RequestIssued] = {}
    ended: dict[tuple[int, int], RequestRecord] = {}
    samples: list[Sample] = []
    events: list[Event] = []
    for row in folder.rows(damage):
        match row:
            case RequestIssued():
                issued[row.worker, row.seq] = row
            case RequestRecord():
                ended[row.worker, row.seq] = row
            case Sample():
                samples.append(row)
            case Event():
                events.append(row)
    last_ns = max(
        [r.done_ns for r in ended.values()] + [s.at_ns for s in samples] + [e.at_ns for e in events],
        default=0,
    )
    for key, lost in issued.items():
        if key not in ended:
            ended[key] = _client_lost(lost, last_ns)
    rows = RunRows(
        requests=tuple(sorted(ended.values(), key=lambda r: (r.intended_ns, r.worker, r.seq))),
        samples=tuple(sorted(samples, key=lambda s: s.at_ns)),
        events=tuple(sorted(events, key=lambda e: e.at_ns)),
        damage=damage,
    )
    _write_results(folder.results_path, rows)
    return rows


def _client_lost(issued: RequestIssued, last_ns: int) -> RequestRecord:
    return RequestRecord(
        worker=issued.worker,
        seq=issued.seq,
        outcome="client_lost",
        endpoint=issued.endpoint,
        planned_input_tokens=issued.planned_input_tokens,
        planned_output_tokens=issued.planned_output_tokens,
        intended_ns=issued.intended_ns,
        done_ns=max(last_ns, issued.intended_ns),
        error="the worker ended before this request did",
    )


_REQUEST_COLUMNS: Final = tuple(field.name for field in dataclasses.fields(RequestRecord))
_TABLES: Final = (
    f"CREATE TABLE requests ({', '.join(_REQUEST_COLUMNS)}, UNIQUE (worker, seq))",
    "CREATE TABLE samples (at_ns, source, target, gap, signals, labels)",
    "CREATE TABLE events (at_ns, event, data)",
    "CREATE TABLE damage (torn_tails, bad_lines)",
)


def _dump(values: Mapping[str, Any]) -> str:
    return json.dumps(dict(values))


def _write_results(path: Path, rows: RunRows) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    draft.unlink(missing_ok=True)
    database = sqlite3.connect(draft)
    try:
        with database:
            for statement in _TABLES:
                database.execute(statement)
            marks = ", ".join("?" * len(_REQUEST_COLUMNS))
            database.executemany(
                f"INSERT INTO requests VALUES ({marks})",  # noqa: S608  (only question marks)
                (tuple(getattr(r, name) for name in _REQUEST_COLUMNS) for r in rows.requests),
            )
            database.executemany(
                "INSERT INTO samples VALUES (?, ?, ?, ?, ?, ?)",
                (
                    (s.at_ns, s.source, s.target, s.gap, _dump(s.signals), _dump(s.labels))
                    for s in rows.samples
                ),
            )
            database.executemany(
                "INSERT INTO events VALUES (?, ?, ?)",
                ((e.at_ns, e.event, _dump(e.data)) for e in rows.events),
            )
            database.execute(
                "INSERT INTO damage VALUES (?, ?)", (rows.damage.torn_tails, rows.damage.bad_lines)
            )
    finally:
        database.close()
    draft.replace(path)


def load_results(folder: RunFolder) -> RunRows:
    """The rows of results.sqlite, the only input of a report; makes the file first when it is missing."""
    if not folder.results_path.is_file():
        return finalise(folder)
    database = sqlite3.connect(f"file:{folder.results_path}?mode=ro", uri=True)
    try:
        requests = database.execute("SELECT * FROM requests ORDER BY intended_ns, worker, seq").fetchall()
        samples = database.execute("SELECT * FROM samples ORDER BY at_ns").fetchall()
        events = database.execute("SELECT * FROM events ORDER BY at_ns").fetchall()
        torn_tails, bad_lines = database.execute("SELECT * FROM damage").fetchone()
    except sqlite3.Error as error:
        raise RunFolderError(f"cannot read {folder.results_path}: {error}; delete it and rerun") from error
    finally:
        database.close()
    return RunRows(
        requests=tuple(_request_from(row) for row in requests),
        samples=tuple(_sample_from(row) for row in samples),
        events=tuple(Event(at_ns=at_ns, event=event, data=json.loads(data)) for at_ns, event, data in events),
        damage=Damage(torn_tails=torn_tails, bad_lines=bad_lines),
    )


def _request_from(row: Iterable[Any]) -> RequestRecord:
    values = dict(zip(_REQUEST_COLUMNS, row, strict=True))
    for flag in ("reused_connection", "retried"):  # SQLite has no booleans
        values[flag] = bool(values[flag])
    return RequestRecord(**values)


def _sample_from(row: tuple[Any, ...]) -> Sample:
    at_ns, source, target, gap, signals, labels = row
    return Sample(
        at_ns=at_ns,
        source=source,
        target=target,
        gap=gap,
        signals=json.loads(signals),
        labels=json.loads(labels),
    )
