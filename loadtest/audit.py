"""One check of an audit: what was looked at, whether it is well, the figure, and what to do about it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from estimator.errors import EXIT_USAGE

Level = Literal["ok", "amber", "red", "skipped"]
STEAL_AMBER: Final = 0.02
"""Of the processor time of the machine that the load comes from: what its hypervisor gave to others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """`said` is one sentence with the figure in it; `fix` what to do, empty where nothing is to be done.

    amber is recorded and the run goes on; red stops it. `exit_code` is what a command ends with for a red
    one: 2 for the client or the configuration, 3 for a server that is not there.
    """

    name: str
    level: Level
    said: str
    fix: str = ""
    exit_code: int = EXIT_USAGE
    figures: Mapping[str, float] = field(default_factory=dict)
    """What was measured, for machines: units are last in the names."""

    @property
    def sentence(self) -> str:
        return f"{self.name}: {self.said}{f'; {self.fix}' if self.fix else ''}"


def graded(value: float, *, amber: float, red: float = math.inf) -> Level:
    """How bad a figure is that had better be small: above `amber`, above `red`, or neither."""
    if value > red:
        return "red"
    return "amber" if value > amber else "ok"


def exit_code(checks: Iterable[Check]) -> int:
    """0 when nothing is red, else the highest code of what is."""
    return max((check.exit_code for check in checks if check.level == "red"), default=0)
