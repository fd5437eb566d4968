"""The run that another one continues: what of it was whole, whether the server is the same, and its rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from estimator.capacity import Prediction
from estimator.errors import PlainError
from loadtest.carry_over import carry_over, events_until, last_row_ns, moved_search, shift_s_between
from loadtest.conductor.server_facts import ServerFacts
from loadtest.earlier_part import EarlierPart
from loadtest.records import Event
from loadtest.results import RunRows, finalise
from loadtest.run_folder import Manifest, RunFolder, RunFolderError
from loadtest.scenario import Scenario, parse_scenario, searching
from loadtest.search_result import SearchResult

NOT_SHOWN: Final = "not shown"


class ResumeError(PlainError):
    """The run cannot go on: one sentence that names what to do instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """How many stages or levels were held to their end, and the moment from which on nothing counts."""

    stages: int
    until_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """An interrupted run. `found`: of a search, what its levels said."""

    folder: RunFolder
    manifest: Manifest
    prediction: Prediction | None
    found: SearchResult | None
    rows: RunRows

    @property
    def scenario(self) -> Scenario:
        return parse_scenario(dict(self.manifest.scenario))

    def scenario_for(self, minutes: float | None) -> Scenario:
        """The same, where `minutes` bounds what is left of a search. Raises ResumeError."""
        scenario = self.scenario
        if minutes is None:
            return scenario
        if scenario.search is None or self.found is None:
            raise ResumeError(f"{self.folder.root} is no search, which --max-minutes bounds: leave it out")
        return searching(scenario, replace(scenario.search, max_minutes=self.found.minutes + minutes))

    def require_same(self, facts: ServerFacts) -> None:
        """Raises ResumeError that names what differs: two servers have no limit in common."""
        for what, was, now in _told(self, facts):
            if was != now:
                raise ResumeError(
                    f"the server is not the one that {self.folder.root} loaded: {what} is {now}, and was "
                    f"{was}; start it as it was, or begin a new run"
                )

    def carry_into(self, folder: RunFolder, *, wall_ns: int, mono_ns: int) -> tuple[EarlierPart, ...]:
        """Writes rows and levels into the new folder, on the clock whose pair is given; says of what runs."""
        whole = whole_of(self.rows.events, self.found, last_row_ns(self.rows))
        manifest, run_id = self.manifest, self.manifest.run_id
        shift_s = shift_s_between(manifest, last_row_ns(self.rows), wall_ns=wall_ns, mono_ns=mono_ns)
        part = EarlierPart(
            run_id=run_id,
            created_utc=manifest.created_utc,
            wall_ns=manifest.wall_ns,
            mono_ns=manifest.mono_ns,
            shift_s=shift_s,
            stages_held=whole.stages,
            load_processes=self._load_processes(),
        )
        events = events_until(self.rows.events, whole.until_ns, stages_held=whole.stages, run_id=run_id)
        carry_over(self.folder, self.rows, events, folder, part)
        if self.found is not None:
            folder.write_search(moved_search(self.found, shift_s))
        before = tuple(replace(one, shift_s=one.shift_s + shift_s) for one in manifest.parts)
        return (*before, part)

    def _load_processes(self) -> int:
        """So many numbers are taken: those that have written a sample, or a request."""
        taken = {int(s.target[1:]) for s in self.rows.samples if s.source == "client"}
        for rows in self.rows.requests.columns("worker"):
            taken.add(int(rows["worker"].max(initial=-1)))
        return max(taken, default=-1) + 1


def read_past(root: Path) -> Past:
    """Seals what the run left behind. Raises ResumeError where there is nothing to go on with."""
    try:
        folder = RunFolder.open(root)
        manifest = folder.read_manifest()
        found, prediction = folder.read_search(), folder.read_prediction()
    except RunFolderError as error:
        raise ResumeError(
            f"{root} does not say what run it was ({str(error).splitlines()[0]}): `ullage recover {root}` "
            "seals the rows that are there; then begin a new run"
        ) from error
    if folder.is_at_work():
        raise ResumeError(f"{root} is still being written: end the run's processes first")
    if manifest.is_soak:
        raise ResumeError(f"{root} is a soak, whose hours only count in one piece: begin it again")
    if not manifest.stages and "search" not in manifest.scenario:
        raise ResumeError(f"{root} held a number of users and had no plan that could go on: begin a new run")
    rows = finalise(folder)
    if manifest.state == "complete" or _is_complete(rows.events):
        raise ResumeError(f"{root} is complete: `ullage report {root}`")
    return Past(folder=folder, manifest=manifest, prediction=prediction, found=found, rows=rows)


def whole_of(events: Sequence[Event], found: SearchResult | None, last_ns: int) -> Whole:
    """Of a search the levels that have ended; of stages all before the last mark. Pure.

    `last_ns`: of the last row, where no stage had begun.
    """
    marks = [event for event in events if event.event in ("stage", "cut")]
    if found is None:
        held = sum(mark.event == "stage" for mark in marks[:-1])
        return Whole(stages=held, until_ns=marks[-1].at_ns if marks else last_ns)
    held = len(found.probes)
    until_ns = round(found.probes[-1].ended_s * 1e9) if held else last_ns
    under_way = [mark.at_ns for mark in marks if int(mark.data["index"] or 0) >= held]
    return Whole(stages=held, until_ns=max(under_way, default=until_ns))


def _is_complete(events: Sequence[Event]) -> bool:
    """It was killed after its last stage, before its manifest said so."""
    ended = [str(event.data.get("reason")) for event in events if event.event == "run_end"]
    return any(" complete" in reason for reason in ended)


def _told(past: Past, facts: ServerFacts) -> Iterator[tuple[str, str, str]]:
    """What both servers say of themselves: its name, then and now."""
    yield "its version", past.manifest.versions.get("server", NOT_SHOWN), facts.version or NOT_SHOWN
    was: Mapping[str, str] = past.manifest.server
    now: Mapping[str, str] = {} if facts.reading is None else facts.reading.cache_config
    for name in sorted({*was, *now}):
        yield name, was.get(name, NOT_SHOWN), now.get(name, NOT_SHOWN)
