"""What a run that goes on keeps of the one it continues: who that was, and how its times were moved."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlierPart:
    """A run that was interrupted. Its rows lie in the folder of the run that goes on, on that run's clock."""

    run_id: str
    created_utc: str
    wall_ns: int
    mono_ns: int
    """Its own pair, as it was: before its times were moved."""
    shift_s: int
    """What was added to its times. 0 where the machine has not been started again meanwhile."""
    stages_held: int
    """So many stages or levels were whole when it ended, those of parts before it included."""
    load_processes: int
    """Load processes have the numbers from here on in the part that follows."""
