"""Finds the limit in few minutes and proves a safe level: events in, commands out. No clock, no I/O.

    search = Search(plan, at_s=0.0)
    search.command               # settle: hold so many users, and say when the level has settled
    search.settled(at_s)         # from now on its requests count
    search.sent(id, at_s)        # each of them, as it is sent; the news may come late
    search.judged(id, violates)  # and once more: at its end, or as soon as it is past a limit
    search.dropped(id)           # or, of one that we cut short ourselves, this
    search.tick(at_s)            # about once a second; the command may change
    search.result                # once the command is to stop

The load changes without a pause between levels. Who drives says `judged` of every request in the end: one
that hangs is a violation at its deadline.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from loadtest.conductor.search.course import (
    SEARCH_SHARE,
    Bracket,
    SearchPlan,
    bracket_of,
    first_failed_below,
    next_choice,
)
from loadtest.conductor.search.level import ROUNDS_HEARD, Cohort, cut_short, find, find_signed, within
from loadtest.search_result import Choice, Finding, LevelVerdict, Probe, SearchResult
from loadtest.sequential import Certificate


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """settle: hold `users` until the level has settled. judge: hold them on. stop: the search is over."""

    phase: Literal["settle", "judge", "stop"]
    users: int
    level: int
    """Its number, from 0: two levels in a row may have the same users."""
    why: str


class Search:
    """The state between two events: levels behind it, one under way."""

    def __init__(self, plan: SearchPlan, *, at_s: float, past: SearchResult | None = None) -> None:
        """`past`: the levels that had ended before an interruption. They took their share of the budget."""
        self._plan = plan
        self._began_s = at_s - (0.0 if past is None else past.minutes * 60)
        self._at_s = at_s
        self._probes: list[Probe] = [] if past is None else list(past.probes)
        self._cohort = Cohort()
        self._level_began_s = at_s
        self._settled_s: float | None = None
        self._choice = self._next_choice()

    @property
    def command(self) -> Command:
        if self._choice is None:
            return Command(phase="stop", users=0, level=len(self._probes), why="all is known")
        phase: Literal["settle", "judge"] = "settle" if self._settled_s is None else "judge"
        return Command(phase=phase, users=self._choice.users, level=len(self._probes), why=self._choice.why)

    @property
    def result(self) -> SearchResult | None:
        """None while the search goes on."""
        return None if self._choice is not None else self.so_far

    @property
    def so_far(self) -> SearchResult:
        """What the levels that ended say: the result, were the search over now."""
        return result_of(self._plan, self._probes, self._spent_s)

    def settled(self, at_s: float) -> None:
        """The level shows no start-up any more. Said of a level that settled before, it changes nothing."""
        if self._settled_s is None:
            self._settled_s = at_s

    def sent(self, request_id: str, at_s: float) -> None:
        """About in order of time. One sent before the level settled does not count, whenever it is told."""
        if self._settled_s is not None and at_s >= self._settled_s:
            self._cohort.sent(request_id)

    def judged(self, request_id: str, violates: bool) -> None:
        """The first word on a request counts; a request that does not count is not heard."""
        self._cohort.judged(request_id, violates)

    def dropped(self, request_id: str) -> None:
        """In place of `judged`: we cut it short before it broke a limit, and it counts for nothing."""
        self._cohort.dropped(request_id)

    def failed(self, request_id: str) -> None:
        """Beside `judged`: it did not succeed, and is charged to the error budget."""
        self._cohort.failed(request_id)

    def preempted(self, since_settled: float) -> None:
        """How many preemptions the server has counted since the level settled."""
        self._cohort.preemptions = since_settled

    def tick(self, at_s: float) -> Command:
        """Ends the level when enough is known or the time is up, and chooses the next one."""
        if self._choice is not None:
            self._at_s = at_s
            finding = self._find(self._choice) or self._out_of_time(self._choice)
            if finding is not None:
                self._end_level(self._choice, finding)
        return self.command

    @property
    def _spent_s(self) -> float:
        return self._at_s - self._began_s

    @property
    def _may_search(self) -> bool:
        return self._spent_s < SEARCH_SHARE * self._plan.budget_s

    def _find(self, choice: Choice) -> Finding | None:
        plan = self._plan
        if choice.role != "certify":
            finding = find(self._cohort, users=choice.users, q=plan.q, confidence=plan.confidence)
        else:
            requests_min = ROUNDS_HEARD * choice.users
            certificate = Certificate(q=plan.q, confidence=plan.confidence, requests_min=requests_min)
            finding = find_signed(self._cohort, certificate)
        return None if finding is None else within(finding, self._cohort, plan.limits)

    def _out_of_time(self, choice: Choice) -> Finding | None:
        plan = self._plan
        if self._spent_s >= plan.budget_s:
            because = f"the budget of {plan.budget_s / 60:g} minutes is spent"
        elif choice.role == "search" and not self._may_search and bracket_of(self._probes).holds:
            because = "what is left of the budget is for the certification"
        else:
            return None
        return cut_short(self._cohort, q=plan.q, confidence=plan.confidence, because=because)

    def _end_level(self, choice: Choice, finding: Finding) -> None:
        self._probes.append(
            Probe(
                choice=choice,
                began_s=self._level_began_s,
                settled_s=self._settled_s,
                ended_s=self._at_s,
                finding=finding,
            )
        )
        self._cohort, self._level_began_s, self._settled_s = Cohort(), self._at_s, None
        self._choice = self._next_choice()

    def _next_choice(self) -> Choice | None:
        if self._spent_s >= self._plan.budget_s:
            return None
        searches_on = self._may_search or not bracket_of(self._probes).holds
        return next_choice(self._plan, self._probes, may_search=searches_on)


def result_of(plan: SearchPlan, probes: list[Probe], spent_s: float) -> SearchResult:
    """A fold over the probes: the same levels give the same result, whoever tried them."""
    searched = [p for p in probes if p.choice.role == "search"]
    bracket = bracket_of(probes)
    certified = next((p.finding for p in probes if p.choice.role == "certify"), None)
    verdict, reason = _verdict(bracket, certified, searched)
    return SearchResult(
        n_max=bracket.holds,
        breaks=bracket.breaks,
        n_safe=plan.safe_users(bracket.holds) if bracket.holds else 0,
        verdict=verdict,
        reason=reason,
        is_monotone=not _is_broken_twice_below_a_pass(probes),
        certificate=certified,
        probes=tuple(probes),
        minutes=spent_s / 60,
    )


def _verdict(bracket: Bracket, certified: Finding | None, searched: list[Probe]) -> tuple[LevelVerdict, str]:
    if certified is not None:
        return certified.verdict, certified.because
    if any(p.users == 1 and p.verdict == "FAIL" for p in searched):
        return "FAIL", "not even one user holds"
    if bracket.holds:
        return "INCONCLUSIVE", "the safe level was not certified"
    return "INCONCLUSIVE", "no level was proven to hold"


def _is_broken_twice_below_a_pass(probes: list[Probe]) -> bool:
    above = next((p for p in probes if p.choice.role == "above"), None)
    failed = first_failed_below(probes, above) if above is not None else None
    if above is None or failed is None or above.verdict != "PASS" or failed.users == above.users:
        return False
    again = {p.users: p.verdict for p in probes if p.choice.role == "repeat"}
    return again.get(failed.users) == "FAIL" and again.get(above.users) == "PASS"
