"""Rows that are elsewhere and clocks that moved void a run; a clock that kept step is a note."""

from __future__ import annotations

from dataclasses import replace

from fake_run import FakeRun, FakeStage

from loadtest.clocks import Measured, Offset, Phase
from loadtest.records import Event
from loadtest.reporter.far import clock_notes, far_fault
from loadtest.reporter.observation import Observation
from loadtest.reporter.saturation import observe

MS = 1_000_000


def clock(phase: Phase, offset_ms: int, *, worker: int = 1) -> Event:
    offset = Offset(offset_ns=offset_ms * MS, uncertainty_ns=MS // 10)
    one = Measured(worker=worker, host="loader-2", phase=phase, offset=offset)
    return Event(at_ns=0, event="clock", data=one.data())


def observed(*events: Event) -> Observation:
    run = FakeRun(stages=(FakeStage(users=8), FakeStage(users=16)))
    rows = run.rows()
    return observe(replace(rows, events=(*rows.events, *events)), run.manifest, None)


def test_a_run_whose_rows_are_elsewhere_is_void_and_says_where() -> None:
    reason = "the rows of w01 on loader-2 did not come here: they are kept in /state there"
    missing = Event(at_ns=0, event="fault", data={"reason": reason, "voids": True})
    assert observed().wall.name != "invalid"
    assert observed(missing).wall.name == "invalid"
    assert reason in observed(missing).wall.evidence


def test_a_clock_that_moved_voids_and_one_that_kept_step_is_a_note() -> None:
    kept, moved = [clock("before", 9_000), clock("after", 9_001)], [clock("before", 0), clock("after", 60)]
    assert observed(*kept).wall == observed().wall
    (note,) = observed(*kept).notes
    assert "w01 ran on loader-2: its clock shows +9.000 s" in note
    assert "+1.00 ms" in note
    assert observed(*moved).wall.name == "invalid"


def test_every_worker_is_judged_by_its_own_clock() -> None:
    events = [clock("before", 100), clock("before", 700, worker=2), clock("after", 101)]
    assert far_fault([*events, clock("after", 701, worker=2)]) is None
    assert len(clock_notes(events)) == 2
    fault = far_fault([*events, clock("after", 100, worker=2)])
    assert fault is not None
    assert "w02" in fault
    assert "w01" not in fault
