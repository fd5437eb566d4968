"""Levels that every request outlasted: all were under way and none began in the window. Pure.

Nothing is known of such a level, and the server may have been well: it counts neither as held nor as broken.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from loadtest.reporter.observation import StageObservation
from loadtest.reporter.stages import LOAD_REACHED_RATIO

NONE_STARTED: Final = "no request started in the window"


def is_outlasted(stage: StageObservation) -> bool:
    """Whatever else went wrong there, a queue or a preemption, has broken the level all the same."""
    return stage.faults == (NONE_STARTED,) and stage.in_flight_mean >= LOAD_REACHED_RATIO * stage.users_set


def outlasted_notes(stages: Sequence[StageObservation]) -> tuple[str, ...]:
    return tuple(
        f"At {stage.name} no request began in the {stage.window_s:g} s that are judged, as those under way "
        "took longer: the level counts neither as held nor as broken. Hold it longer to have it judged."
        for stage in stages
        if is_outlasted(stage)
    )
