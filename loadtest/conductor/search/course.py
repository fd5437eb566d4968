"""Which level to try next, from the levels tried so far: bracket, bisect, certify, look above. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from loadtest.scenario import Limits
from loadtest.search_result import Choice, Probe

BRACKET_RATIO: Final = 1.25
RESOLUTION: Final = 1.05
"""The search ends when the levels that hold and that break are this near, or one user apart."""
STEP_MAX: Final = 2.0
"""A prediction far off is left behind faster, but no server is asked for more than twice at once."""
PATIENCE: Final = 3
"""Steps of BRACKET_RATIO in one direction before they grow."""
SEARCH_SHARE: Final = 0.6
"""Of the budget; the rest is for the certification, without which nothing is signed."""
PROBES_MAX: Final = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchPlan:
    """What is searched: the largest number of users at which at most a share `q` of requests violates."""

    start_users: int
    """The prediction, clipped to the slots."""
    users_max: int
    """Never more; a search that gets there reports a lower bound."""
    q: float
    safe_users: Callable[[int], int]
    """N_max -> the level to certify."""
    budget_s: float
    confidence: float = 0.95
    limits: Limits = field(default_factory=Limits)
    """Beside `q` a level must keep the error budget, and the most preemptions where that is set."""
    bracket_ratio: float = BRACKET_RATIO

    def __post_init__(self) -> None:
        if not 1 <= self.start_users <= self.users_max:
            raise ValueError(f"start_users must be from 1 to {self.users_max}, got {self.start_users}")
        if not 0.0 < self.q <= 0.5:
            raise ValueError(f"q must be above 0 and at most 0.5, got {self.q}")
        if not (self.budget_s > 0.0 and self.bracket_ratio > 1.0):
            raise ValueError("budget_s must be above 0 and bracket_ratio above 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bracket:
    """The largest level known to hold (0: none) and the smallest that does not, or could not be told."""

    holds: int
    breaks: int | None

    @property
    def is_closed(self) -> bool:
        if self.breaks is None:
            return False
        return self.breaks <= self.holds + 1 or self.breaks <= self.holds * RESOLUTION


def bracket_of(probes: Sequence[Probe]) -> Bracket:
    """A level that was not proven good is never the lower end; none is tried above one that broke."""
    passed = [p.users for p in probes if p.verdict == "PASS" and p.choice.role == "search"]
    broken = [p.users for p in probes if _is_too_high(p)]
    return Bracket(holds=max(passed, default=0), breaks=min(broken, default=None))


def _is_too_high(probe: Probe) -> bool:
    """A search level that was not proven good, and any level that failed, but a failed certification."""
    if probe.choice.role == "search":
        return probe.verdict != "PASS"
    return probe.choice.role != "certify" and probe.verdict == "FAIL"


def next_choice(plan: SearchPlan, probes: Sequence[Probe], *, may_search: bool) -> Choice | None:
    """None: all is known that the plan can learn. Without `may_search` the bracket stays as it is."""
    if len(probes) >= PROBES_MAX:
        return None
    bracket = bracket_of(probes)
    by_role = {role: [p for p in probes if p.choice.role == role] for role in ("certify", "above", "repeat")}
    # what the look above found may lower the bracket: the search is over by then
    if may_search and not by_role["certify"]:
        choice = _search(plan, bracket, [p for p in probes if p.choice.role == "search"])
        if choice is not None:
            return choice
    safe = plan.safe_users(bracket.holds) if bracket.holds else 0
    if not by_role["certify"]:
        return _certify(bracket, safe) if safe > 0 else None
    if not by_role["above"]:
        return _above(plan, bracket, probes)
    return _repeat(probes, by_role["above"][0], len(by_role["repeat"]))


def _search(plan: SearchPlan, bracket: Bracket, searched: Sequence[Probe]) -> Choice | None:
    holds, breaks = bracket.holds, bracket.breaks
    if not searched:
        return Choice(users=plan.start_users, role="search", why="the prediction says the limit is here")
    if bracket.is_closed or holds >= plan.users_max:
        return None
    ratio = min(plan.bracket_ratio ** max(1, len(searched) - PATIENCE + 1), max(STEP_MAX, plan.bracket_ratio))
    if breaks is None:
        users = min(max(math.ceil(holds * ratio), holds + 1), plan.users_max)
        return Choice(users=users, role="search", why=f"{holds} users hold and no level is known to break")
    if not holds:
        users = max(min(math.floor(breaks / ratio), breaks - 1), 1)
        return Choice(users=users, role="search", why=f"{breaks} users are too many and no level holds yet")
    users = min(max(round(math.sqrt(holds * breaks)), holds + 1), breaks - 1)
    return Choice(users=users, role="search", why=f"halfway between {holds}, which holds, and {breaks}")


def _certify(bracket: Bracket, safe: int) -> Choice:
    return Choice(
        users=safe,
        role="certify",
        why=f"what is promised if {bracket.holds} hold, proven with fresh requests",
    )


def _above(plan: SearchPlan, bracket: Bracket, probes: Sequence[Probe]) -> Choice | None:
    """None where that level has failed already: it was looked at."""
    users = max(bracket.holds + 1, math.ceil(bracket.holds * RESOLUTION))
    if users > plan.users_max or any(p.users == users and p.verdict == "FAIL" for p in probes):
        return None
    return Choice(users=users, role="above", why=f"one step above {bracket.holds}: does it really end there?")


def _repeat(probes: Sequence[Probe], above: Probe, repeated: int) -> Choice | None:
    """A level passed above one that failed: both again, before anyone calls the server non-monotone."""
    failed = first_failed_below(probes, above)
    if above.verdict != "PASS" or failed is None:
        return None
    levels = sorted({failed.users, above.users})
    if repeated >= len(levels):
        return None
    return Choice(
        users=levels[repeated],
        role="repeat",
        why=f"{above.users} users passed although {failed.users} failed: both are tried again",
    )


def first_failed_below(probes: Sequence[Probe], above: Probe) -> Probe | None:
    """The lowest search level that failed at or below the level `above`."""
    failed = [
        p for p in probes if p.choice.role == "search" and p.verdict == "FAIL" and p.users <= above.users
    ]
    return min(failed, key=lambda p: p.users, default=None)
