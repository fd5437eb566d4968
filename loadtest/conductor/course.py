"""What decides the load of a run: stages that were planned, or (pilot.py) a search. No clock, no Locust."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from loadtest.conductor.plan import Held, held_at
from loadtest.run_folder import PlannedStage
from loadtest.workers.docket import Judgements

FOREVER_S: Final = 366 * 24 * 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """When the load is looked at, and how many users there are then."""

    elapsed_s: float
    """Since the load began, as Locust counts it."""
    at_ns: int
    """The rows' clock."""
    users: int
    preemptions_total: float | None = None
    """The server's counter when it was last looked at; None: it shows none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What is held. `has_settled`: it is judged now, where the stage did not know beforehand when."""

    stage: PlannedStage
    has_settled: bool = False


class Course(Protocol):
    """Asked about once a second."""

    @property
    def stages(self) -> Sequence[PlannedStage]:
        """As planned; empty where they are decided on the way."""

    @property
    def users_max(self) -> int:
        """More are never asked for."""

    @property
    def is_complete(self) -> bool:
        """It was followed to its end, or has none and went on until it was stopped."""

    @property
    def end_reason(self) -> str:
        """Why the load ended, once it has."""

    def step(self, now: Moment) -> Step | None:
        """None when it is over, and ever after."""

    def hear(self, judged: Judgements) -> None:
        """What came of the requests."""


class StagedCourse:
    """One stage after the other, from number `first` on."""

    def __init__(self, stages: Sequence[PlannedStage], first: int = 0) -> None:
        self.stages = stages
        self._first = first
        self._held: Held | None = None
        self._is_over = False

    @property
    def users_max(self) -> int:
        return max(stage.users for stage in self.stages)

    @property
    def is_complete(self) -> bool:
        return self._is_over or self.stages[-1].hold_s == FOREVER_S

    @property
    def end_reason(self) -> str:
        return "plan complete" if self.is_complete else "stopped"

    def step(self, now: Moment) -> Step | None:
        if not self._is_over:
            if now.users and self._held is not None and self.stages[self._held.index].is_dip:
                self._held = Held(index=self._held.index, since_s=now.elapsed_s)  # answers still come
            if self._held is None:
                self._held = Held(index=self._first, since_s=now.elapsed_s)
            self._held = held_at(self.stages, self._held, now.elapsed_s)
            self._is_over = self._held is None
        return None if self._held is None else Step(stage=self.stages[self._held.index])

    def hear(self, judged: Judgements) -> None:
        """Nothing that comes of the requests changes the stages."""
