"""A run that went on after an interruption: which looks belong together, and what is said. Pure.

Between two parts the server may have been started afresh, and its counters with it: nothing is compared
across the gap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from loadtest.records import Event, Sample
from loadtest.reporter.observation import Window
from loadtest.run_folder import Manifest


def looks_of_parts(looks: Sequence[Sample], events: Sequence[Event]) -> list[list[Sample]]:
    """The looks of each part, without those from its cut to the next part's start; at least one part."""
    cuts = [event.at_ns for event in events if event.event == "cut"]
    starts = [event.at_ns for event in events if event.event == "run_start"]
    begins = [-math.inf, *(next((at for at in starts if at > cut), math.inf) for cut in cuts)]
    return [
        [look for look in looks if begin <= look.at_ns < end]
        for begin, end in zip(begins, [*cuts, math.inf], strict=True)
    ]


def looks_at(window: Window, parts: Sequence[Sequence[Sample]]) -> Sequence[Sample]:
    """The looks of the part in which the stage was held."""
    begun = [part for part in parts if part and part[0].at_ns < window.end_ns]
    return begun[-1] if begun else ()


def part_notes(manifest: Manifest) -> tuple[str, ...]:
    """One sentence for each run that this one continues."""
    word = "level" if "search" in manifest.scenario else "stage"
    notes, before = [], 0
    for part in manifest.parts:
        notes.append(
            f"This run goes on where {part.run_id} was interrupted: {_held(word, before, part.stages_held)} "
            f"there. The {word} that was under way then was begun again, and its first requests are in no "
            f"{word}'s figures."
        )
        before = part.stages_held
    return tuple(notes)


def _held(word: str, before: int, until: int) -> str:
    match until - before:
        case 0:
            return f"no {word} was held to its end"
        case 1:
            return f"{word} {until} was held"
        case _:
            return f"{word}s {before + 1} to {until} were held"
