"""Steers a run by the search: what came of the requests goes in, the level to hold comes out. No clock."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean
from typing import Final

from loadtest.conductor.course import Moment, Step
from loadtest.conductor.search import Search, SearchPlan, has_settled
from loadtest.conductor.search.machine import Command
from loadtest.run_folder import PlannedStage
from loadtest.scenario import Scenario, SearchAsked
from loadtest.search_result import SearchResult
from loadtest.workers.docket import Ended, Judgements

NEWS_LATE_S: Final = 5.0
"""So long after its last time limit a request that nobody speaks of is lost, and counts as one that hung."""


class Pilot:
    """A Course. `keep` is given what was found, at the start and whenever a level has ended.

    `past`: what was found before the search was interrupted; it goes on from there.
    """

    def __init__(
        self,
        plan: SearchPlan,
        scenario: Scenario,
        at_ns: int,
        keep: Callable[[SearchResult], None],
        past: SearchResult | None = None,
    ) -> None:
        self._plan = plan
        self._scenario = scenario
        self._asked = scenario.search or SearchAsked()
        self._keep = keep
        self._search = Search(plan, at_s=at_ns / 1e9, past=past)
        self._first = self._search.command.level
        self._request_s: float | None = None
        """Mean duration of the last level's requests."""
        self._stage = self._begin(self._search.command, at_ns)
        self._unjudged: dict[str, int] = {}
        self._preempted_before: float | None = None
        """The server's counter when the level had settled."""
        keep(self._search.so_far)

    @property
    def stages(self) -> tuple[PlannedStage, ...]:
        return ()

    @property
    def users_max(self) -> int:
        return self._plan.users_max

    @property
    def is_complete(self) -> bool:
        return self._search.result is not None

    @property
    def end_reason(self) -> str:
        found = self._search.result
        return "stopped" if found is None else f"search complete: {found.verdict}, {found.reason}"

    def hear(self, judged: Judgements) -> None:
        for request_id, at_ns in judged.sent:
            self._unjudged[request_id] = at_ns
            self._search.sent(request_id, at_ns / 1e9)
        for request_id, violates in judged.judged:
            self._unjudged.pop(request_id, None)
            self._search.judged(request_id, violates)
        for (request_id,) in judged.dropped:
            self._unjudged.pop(request_id, None)
            self._search.dropped(request_id)
        for (request_id,) in judged.failed:
            self._search.failed(request_id)
        self._ended += [
            (at_ns, ttft_s, e2e_s) for at_ns, ttft_s, e2e_s in judged.ended if at_ns >= self._since_ns
        ]

    def step(self, now: Moment) -> Step | None:
        self._judge_lost(now.at_ns)
        search = self._search
        if search.command.phase == "settle" and self._has_settled(now):
            search.settled(now.at_ns / 1e9)
            self._preempted_before = now.preemptions_total
        if now.preemptions_total is not None and self._preempted_before is not None:
            search.preempted(now.preemptions_total - self._preempted_before)
        command = search.tick(now.at_ns / 1e9)
        if command.level != self._stage.index:
            self._keep(search.so_far)
        if command.phase == "stop":
            return None
        if command.level != self._stage.index:
            self._stage = self._begin(command, now.at_ns)
        return Step(stage=self._stage, has_settled=command.phase == "judge")

    def _begin(self, command: Command, at_ns: int) -> PlannedStage:
        before = None if command.level == self._first else self._stage.users
        if before is not None:
            self._request_s = self._mean_request_s
        self._since_ns, self._preempted_before = at_ns, None
        self._ended: list[Ended] = []
        return PlannedStage(
            index=command.level,
            label=f"probe {command.level + 1}: {command.users} users, {command.why}",
            users=command.users,
            hold_s=self._plan.budget_s,
            settle_s=None,
            spawn_rate_per_s=self._rate_per_s(command.users, before),
        )

    def _rate_per_s(self, users: int, before: int | None) -> float:
        """New users come spread over a request's duration; who is to leave does so with the next answer.

        Users who ask in step would make waves that no steady load has.
        """
        most = self._scenario.spawn_rate_per_s
        if before is None or self._request_s is None:
            return most
        if users <= before:
            return float(max(before - users, 1))
        return min(most, (users - before) / self._request_s)

    @property
    def _mean_request_s(self) -> float | None:
        return fmean(e2e_s for _, _, e2e_s in self._ended) if self._ended else self._request_s

    def _has_settled(self, now: Moment) -> bool:
        """Not before all users are there, and all who were to leave have left."""
        request_s = self._mean_request_s
        if now.users != self._stage.users or request_s is None:
            return False
        return has_settled(
            (now.at_ns - self._since_ns) / 1e9,
            request_s,
            [ttft_s for _, ttft_s, _ in sorted(self._ended) if ttft_s is not None],
            least_s=self._asked.settle_min_s,
        )

    def _judge_lost(self, at_ns: int) -> None:
        """Requests of a load process that died; and what Locust cut short."""
        limit_ns = at_ns - int((self._scenario.timeouts.total_s + NEWS_LATE_S) * 1e9)
        for request_id in [one for one, sent_ns in self._unjudged.items() if sent_ns < limit_ns]:
            del self._unjudged[request_id]
            self._search.judged(request_id, violates=True)
