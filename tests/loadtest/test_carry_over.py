"""The rows of an interrupted run in the folder of the run that goes on: all there, in order, judged alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from fake_folder import write_run
from fake_run import SECOND_NS, STAGE_S, FakeRun, FakeStage

from loadtest.carry_over import events_until, last_row_ns, shift_s_between
from loadtest.conductor.past import Past, ResumeError, Whole, read_past, whole_of
from loadtest.conductor.plan import plan_stages
from loadtest.conductor.server_facts import ServerFacts
from loadtest.records import Event, RequestIssued, StreamCounts
from loadtest.reporter.run_parts import looks_of_parts, part_notes
from loadtest.reporter.saturation import observe
from loadtest.reporter.stages import windows
from loadtest.results import load_results
from loadtest.run_folder import Manifest, RunFolder
from loadtest.scenario import parse_scenario
from loadtest.search_result import Choice, Finding, Probe, SearchResult

RUN = FakeRun(stages=(FakeStage(users=20), FakeStage(users=30), FakeStage(users=40, waiting=9)))
STAGES = plan_stages(parse_scenario(dict(RUN.manifest.scenario)), None)
DAY_S = 24 * 3600
FOUND = SearchResult(
    n_max=0,
    breaks=None,
    n_safe=0,
    verdict="INCONCLUSIVE",
    reason="",
    is_monotone=True,
    certificate=None,
    probes=(),
    minutes=0.0,
)


def an_interrupted_run(home: Path, **manifest: object) -> Path:
    """Killed in its third stage."""
    told = {"state": "running", "stages": STAGES, **manifest}
    root = write_run(RUN, home, "parent", **told)
    lines = (root / "events.jsonl").read_bytes().splitlines(keepends=True)
    (root / "events.jsonl").write_bytes(b"".join(lines[:-1]))  # without its end
    return root


def went_on(past: Past, home: Path, *, wall_ns: int, mono_ns: int) -> tuple[RunFolder, Manifest]:
    folder = RunFolder.create(home, "child")
    parts = past.carry_into(folder, wall_ns=wall_ns, mono_ns=mono_ns)
    manifest = replace(past.manifest, run_id="child", wall_ns=wall_ns, mono_ns=mono_ns, parts=parts)
    folder.write_manifest(manifest)
    return folder, manifest


@pytest.mark.parametrize("mono_s", [DAY_S, 100], ids=["the same boot", "after a reboot"])
def test_what_was_judged_of_the_stages_held_is_judged_alike(tmp_path: Path, mono_s: int) -> None:
    past = read_past(an_interrupted_run(tmp_path))
    folder, manifest = went_on(past, tmp_path, wall_ns=DAY_S * SECOND_NS, mono_ns=mono_s * SECOND_NS)
    rows = load_results(folder)
    assert max(row.at_ns for row in rows.samples) < mono_s * SECOND_NS
    assert (manifest.stages_held, manifest.first_worker) == (2, 1)
    here = observe(rows, manifest, RUN.slots)
    there = observe(RUN.rows(), RUN.manifest, RUN.slots)
    assert here.stages == there.stages[:2]
    assert (here.requests, here.outcomes) == (there.requests, there.outcomes)


def test_the_interrupted_stage_is_no_window_and_its_rows_are_kept(tmp_path: Path) -> None:
    past = read_past(an_interrupted_run(tmp_path))
    folder, _ = went_on(past, tmp_path, wall_ns=DAY_S * SECOND_NS, mono_ns=DAY_S * SECOND_NS)
    rows = load_results(folder)
    assert [(window.index, window.window_s) for window in windows(rows.events)] == [(0, 50.0), (1, 50.0)]
    assert {(r.worker, r.seq) for r in rows.requests} == {(r.worker, r.seq) for r in RUN.rows().requests}
    assert any(r.intended_ns > 2 * STAGE_S * SECOND_NS for r in rows.requests)


def test_a_request_without_an_end_is_lost_when_its_part_ends_and_not_later(tmp_path: Path) -> None:
    root = an_interrupted_run(tmp_path)
    text = next((root / "records").glob("*.jsonl"))
    writer = RunFolder.open(root).records_writer(0)
    issued_ns = 130 * SECOND_NS
    writer.append(
        RequestIssued(
            worker=0,
            seq=10**6,
            endpoint="completions",
            planned_input_tokens=1,
            planned_output_tokens=1,
            intended_ns=issued_ns,
        )
    )
    writer.close()
    assert text.exists()
    past = read_past(root)
    folder, _ = went_on(past, tmp_path, wall_ns=DAY_S * SECOND_NS, mono_ns=DAY_S * SECOND_NS)
    (lost,) = [r for r in load_results(folder).requests if r.outcome == "client_lost"]
    assert lost.seq == 10**6
    assert issued_ns < lost.done_ns == last_row_ns(past.rows) < DAY_S * SECOND_NS


def test_counts_of_streams_move_by_the_same_seconds(tmp_path: Path) -> None:
    root = an_interrupted_run(tmp_path)
    writer = RunFolder.open(root).streams_writer(0)
    told = {"worker": 0, "gaps": 3, "gap_sum_ns": 9, "gap_sum_squares_ns2": 27, "gap_slots": {"3": 3}}
    writer.append(StreamCounts(second=7, chunks={"7": 2, "8": 2}, **told))  # type: ignore[arg-type]
    writer.close()
    past = read_past(root)
    folder, manifest = went_on(past, tmp_path, wall_ns=DAY_S * SECOND_NS, mono_ns=100 * SECOND_NS)
    shift_s = manifest.parts[0].shift_s
    (row,) = folder.stream_counts(past.rows.damage)
    assert (row.second, row.chunks) == (7 + shift_s, {str(7 + shift_s): 2, str(8 + shift_s): 2})


def test_a_run_that_went_on_may_be_interrupted_before_its_first_stage_and_go_on_again(tmp_path: Path) -> None:
    past = read_past(an_interrupted_run(tmp_path))
    child, manifest = went_on(past, tmp_path, wall_ns=DAY_S * SECOND_NS, mono_ns=DAY_S * SECOND_NS)
    again = read_past(child.root)
    assert whole_of(again.rows.events, None, 0) == whole_of(past.rows.events, None, 0)
    grandchild = RunFolder.create(tmp_path, "grandchild")
    parts = again.carry_into(grandchild, wall_ns=DAY_S * SECOND_NS, mono_ns=(DAY_S + 50) * SECOND_NS)
    assert [part.run_id for part in parts] == ["parent", "child"]
    assert parts[0].shift_s == manifest.parts[0].shift_s + parts[1].shift_s == 50
    assert len(load_results(grandchild).requests) == len(past.rows.requests)


def test_of_a_search_the_levels_that_ended_are_whole() -> None:
    """Killed before the next level was marked: what search.json holds has ended."""
    probe = Probe(
        choice=Choice(users=1, role="search", why=""),
        began_s=1.0,
        settled_s=2.0,
        ended_s=5.0,
        finding=Finding(verdict="PASS", n=9, k=0, design_effect=1.0, because=""),
    )
    found = replace(FOUND, probes=(probe,))
    whole = Whole(stages=1, until_ns=5 * SECOND_NS)
    assert whole_of([a_stage(0, 1), a_stage(1, 5)], found, 9 * SECOND_NS) == whole
    assert whole_of([a_stage(0, 1)], found, 9 * SECOND_NS) == whole
    assert whole_of([a_stage(0, 1)], FOUND, 9 * SECOND_NS) == Whole(stages=0, until_ns=SECOND_NS)


@pytest.mark.parametrize(("wall_s", "mono_s", "shift_s"), [(500, 500, 0), (10**6, 200, 200 - 10**6)])
def test_times_move_by_how_far_the_clocks_begin_apart(wall_s: int, mono_s: int, shift_s: int) -> None:
    parent = RUN.manifest  # its clock began at the epoch
    last_ns = 180 * SECOND_NS
    moved = shift_s_between(parent, last_ns, wall_ns=wall_s * SECOND_NS, mono_ns=mono_s * SECOND_NS)
    assert moved == shift_s


def test_a_calendar_clock_set_back_leaves_the_parts_in_order() -> None:
    moved = shift_s_between(RUN.manifest, 180 * SECOND_NS, wall_ns=50 * SECOND_NS, mono_ns=50 * SECOND_NS)
    assert 180 + moved <= 50


def a_stage(index: int, at_s: int) -> Event:
    return Event(at_ns=at_s * SECOND_NS, event="stage", data={"index": index, "users": 1, "settle_s": 0.0})


def test_why_the_earlier_part_ended_is_a_note_and_no_fault() -> None:
    fault = Event(at_ns=9 * SECOND_NS, event="fault", data={"reason": "it died", "exit_code": 3})
    told = events_until([a_stage(0, 1), a_stage(1, 5), fault], 5 * SECOND_NS, stages_held=1, run_id="p")
    assert [(event.event, event.at_ns // SECOND_NS) for event in told] == [
        ("stage", 1),
        ("cut", 5),
        ("note", 5),
        ("note", 9),
    ]
    assert told[-1].data["reason"] == "it died"


def test_a_server_started_afresh_between_the_parts_has_not_died() -> None:
    """Its counters begin again; each part is compared with itself."""
    events = [
        Event(at_ns=0, event="run_start"),
        Event(at_ns=60 * SECOND_NS, event="cut"),
        Event(at_ns=120 * SECOND_NS, event="run_start"),
    ]
    looks = [sample for sample in RUN.rows().samples if sample.source == "engine"]
    first, second = looks_of_parts(looks, events)
    assert first[-1].at_ns < 60 * SECOND_NS < 120 * SECOND_NS <= second[0].at_ns
    assert looks_of_parts(looks, events[:1]) == [looks]


def test_the_report_names_every_part(tmp_path: Path) -> None:
    past = read_past(an_interrupted_run(tmp_path))
    _, manifest = went_on(past, tmp_path, wall_ns=DAY_S * SECOND_NS, mono_ns=DAY_S * SECOND_NS)
    (note,) = part_notes(manifest)
    assert note.startswith("This run goes on where parent was interrupted: stages 1 to 2 were held there.")


@pytest.mark.parametrize(
    ("manifest", "why"),
    [
        ({"state": "complete"}, "parent is complete: `ullage report"),
        ({"stages": ()}, "had no plan that could go on"),
        ({"stages": (replace(STAGES[0], users=0),)}, "is a soak, whose hours only count in one piece"),
    ],
)
def test_a_run_that_cannot_go_on_is_refused(tmp_path: Path, manifest: dict[str, object], why: str) -> None:
    root = an_interrupted_run(tmp_path, **manifest)
    with pytest.raises(ResumeError, match=why):
        read_past(root)


def test_a_run_whose_processes_live_is_refused(tmp_path: Path) -> None:
    root = an_interrupted_run(tmp_path)
    writer = RunFolder.open(root).samples_writer("client-w00")
    with pytest.raises(ResumeError, match="is still being written: end the run's processes first"):
        read_past(root)
    writer.close()


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_text("{")], ids=["gone", "torn"])
def test_a_folder_that_does_not_say_what_it_was_names_recover(tmp_path: Path, spoil: object) -> None:
    root = an_interrupted_run(tmp_path)
    spoil(root / "manifest.json")  # type: ignore[operator]
    with pytest.raises(ResumeError, match=f"`ullage recover {root}`") as refused:
        read_past(root)
    assert "\n" not in str(refused.value)


def test_another_server_is_refused_and_what_differs_is_named(tmp_path: Path) -> None:
    past = read_past(an_interrupted_run(tmp_path, versions={"server": "0.32.0"}))
    past.require_same(ServerFacts(models=(), version="0.32.0", reading=None))
    with pytest.raises(ResumeError, match=r"its version is 0\.33\.0, and was 0\.32\.0; start it as it was"):
        past.require_same(ServerFacts(models=(), version="0.33.0", reading=None))
