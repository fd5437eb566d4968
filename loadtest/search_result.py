"""What a search has found, as frozen values: written while it loads a server, read for the report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LevelVerdict = Literal["PASS", "FAIL", "INCONCLUSIVE"]
Role = Literal["search", "certify", "above", "repeat"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A level to be tried, and the sentence that says why this one."""

    users: int
    role: Role
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """How a level ended: `k` of `n` requests violate. `more_needed` clean ones would have passed it."""

    verdict: LevelVerdict
    n: int
    k: int
    design_effect: float
    because: str
    share_at_most: float | None = None
    """Upper confidence bound of the share that violates, where the exact test was asked."""
    more_needed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One level that was tried; times are seconds on the caller's clock. `settled_s` None: it never did."""

    choice: Choice
    began_s: float
    settled_s: float | None
    ended_s: float
    finding: Finding

    @property
    def users(self) -> int:
        return self.choice.users

    @property
    def verdict(self) -> LevelVerdict:
        return self.finding.verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """What was found. n_max 0: no level is known to hold."""

    n_max: int
    breaks: int | None
    """The smallest level that does not hold or could not be told; None: none was found."""
    n_safe: int
    verdict: LevelVerdict
    reason: str
    is_monotone: bool
    """False: a level passed twice above one that failed twice. n_max is then the end of the lower part."""
    certificate: Finding | None
    probes: tuple[Probe, ...]
    minutes: float

    @property
    def is_lower_bound(self) -> bool:
        return self.n_max > 0 and self.breaks is None
