"""A run that is steered by a search: what comes of the requests decides the users."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from fake_run import FakeRun
from workloads import a_scenario

from estimator.capacity import Prediction
from loadtest.conductor.course import Moment, StagedCourse, Step
from loadtest.conductor.pilot import NEWS_LATE_S, Pilot
from loadtest.conductor.search_plan import USERS_PER_START, plan_search
from loadtest.run_folder import PlannedStage
from loadtest.scenario import Scenario, ScenarioError, searching
from loadtest.search_result import SearchResult
from loadtest.workers.docket import Judgements

SECOND_NS = 10**9
REQUEST_S = 2.0


def a_prediction(slots: int | None = None) -> Prediction | None:
    """31 guaranteed."""
    return FakeRun(stages=(), slots=slots).prediction


def a_search(**changes: object) -> Scenario:
    asked = {"max_minutes": 10, "settle_min_s": 4, **changes}
    return a_scenario(stages=[], search=asked, limits={"ttft_s": 1.0, "percentile": 80})


@dataclass
class FakeServer:
    """Holds so many users: beyond them every request violates. Requests take two seconds."""

    holds: int
    scenario: Scenario = field(default_factory=lambda: a_search(start_users=10))
    kept: list[SearchResult] = field(default_factory=list)
    at_s: int = 1000
    seq: int = 0
    users: int = 10
    is_silent: bool = False

    def __post_init__(self) -> None:
        plan = plan_search(self.scenario, None, users_cap=1000)
        self.pilot = Pilot(plan, self.scenario, self.at_s * SECOND_NS, self.kept.append)

    def second(self, users: int | None = None) -> Step | None:
        """What is held after one more second, in which half of the users ask."""
        self.at_s += 1
        step = self.pilot.step(Moment(elapsed_s=0.0, at_ns=self.at_s * SECOND_NS, users=users or self.users))
        if step is not None:
            self.users = step.stage.users
            ids = [f"0/{self.seq + i}" for i in range(step.stage.users // 2)]
            self.seq += len(ids)
            self.pilot.hear(self._news(ids, step.stage.users > self.holds))
        return step

    def _news(self, ids: list[str], violates: bool) -> Judgements:
        at_ns = self.at_s * SECOND_NS + 1
        judged = [] if self.is_silent else [(one, violates) for one in ids]
        return Judgements(
            sent=[(one, at_ns) for one in ids], judged=judged, ended=[(at_ns, 0.1, REQUEST_S) for _ in ids]
        )

    def run(self, seconds_max: int = 2000) -> list[Step]:
        steps = []
        for _ in range(seconds_max):
            step = self.second()
            if step is None:
                return steps
            steps.append(step)
        raise AssertionError("the search did not end")


def test_the_limit_is_found_and_kept() -> None:
    server = FakeServer(holds=23)
    server.run()
    found = server.kept[-1]
    assert (found.n_max, found.breaks, found.n_safe, found.verdict) == (23, 24, 18, "PASS")
    assert server.pilot.is_complete
    assert server.pilot.end_reason.startswith("search complete: PASS, look 1 of 3")


def test_a_search_that_goes_on_marks_its_levels_from_where_it_was() -> None:
    whole = FakeServer(holds=23)
    whole.run()
    past = whole.kept[3]
    server = FakeServer(holds=23, at_s=50_000)
    plan = plan_search(server.scenario, None, users_cap=1000)
    server.pilot = Pilot(plan, server.scenario, server.at_s * SECOND_NS, server.kept.append, past)
    steps = server.run()
    assert steps[0].stage.index == len(past.probes) == 3
    assert steps[0].stage.spawn_rate_per_s == server.scenario.spawn_rate_per_s  # nobody is there yet
    found = server.kept[-1]
    assert (found.n_max, found.n_safe, found.verdict) == (23, 18, "PASS")


def test_stages_that_were_held_are_not_held_again() -> None:
    stages = [
        PlannedStage(index=index, label="", users=1, hold_s=10.0, settle_s=0.0, spawn_rate_per_s=1.0)
        for index in range(3)
    ]
    course = StagedCourse(stages, 1)
    held = [course.step(Moment(elapsed_s=at_s, at_ns=0, users=1)) for at_s in (0.0, 9.0, 11.0, 22.0)]
    assert [None if step is None else step.stage.index for step in held] == [1, 1, 2, None]
    assert course.is_complete


def test_what_is_known_is_kept_at_the_start_and_after_every_level() -> None:
    """Whoever kills the load loses the level under way and no other."""
    server = FakeServer(holds=23)
    assert [len(found.probes) for found in server.kept] == [0]
    server.run()
    assert [len(found.probes) for found in server.kept] == list(range(len(server.kept[-1].probes) + 1))


def test_a_level_is_a_stage_that_says_why_and_settles_once() -> None:
    steps = FakeServer(holds=23).run()
    first = steps[0].stage
    assert (first.index, first.users, first.settle_s) == (0, 10, None)
    assert first.label == "probe 1: 10 users, the prediction says the limit is here"
    settled = [step.has_settled for step in steps if step.stage.index == 0]
    assert settled == sorted(settled)
    assert settled.index(True) >= 3  # settle_min_s


def test_a_level_settles_only_when_its_users_are_there() -> None:
    server = FakeServer(holds=23)
    for _ in range(60):
        step = server.second(users=9)
        assert step is not None
        assert not step.has_settled


def test_new_users_come_over_one_request_and_who_leaves_is_told_at_once() -> None:
    steps = FakeServer(holds=23).run()
    stages: dict[int, PlannedStage] = {step.stage.index: step.stage for step in steps}
    assert stages[0].spawn_rate_per_s == a_search().spawn_rate_per_s
    for index in range(1, len(stages)):
        change = stages[index].users - stages[index - 1].users
        assert stages[index].spawn_rate_per_s == (change / REQUEST_S if change > 0 else -change)


def test_a_request_that_nobody_speaks_of_any_more_violates() -> None:
    server = FakeServer(holds=23)
    while not (step := server.second()) or not step.has_settled:
        pass
    server.is_silent = True  # its load process died
    server.second()
    quiet_s = 0
    while (step := server.second()) is not None and step.stage.index == 0:
        quiet_s += 1
    assert server.kept[-1].probes[0].verdict == "FAIL"
    assert quiet_s >= a_search().timeouts.total_s + NEWS_LATE_S


def test_the_budget_ends_a_search_without_an_answer() -> None:
    server = FakeServer(holds=23, scenario=a_search(start_users=10, max_minutes=0.5))
    assert len(server.run()) <= 31
    assert server.kept[-1].verdict == "INCONCLUSIVE"


def test_a_search_begins_at_the_smaller_of_cache_and_slots() -> None:
    assert plan_search(a_search(), a_prediction(), 1000).start_users == 31
    assert plan_search(a_search(), a_prediction(slots=24), 1000).start_users == 24
    assert plan_search(a_search(start_users=5), a_prediction(), 1000).start_users == 5


def test_it_goes_no_further_than_it_is_told() -> None:
    assert plan_search(a_search(), a_prediction(), 1000).users_max == USERS_PER_START * 31
    assert plan_search(a_search(users_max=40), a_prediction(), 1000).users_max == 40
    capped = plan_search(a_search(), a_prediction(), 20)
    assert (capped.start_users, capped.users_max) == (20, 20)


def test_what_is_certified_keeps_the_buffer_of_every_limit() -> None:
    plan = plan_search(a_search(), a_prediction(slots=24), 1000)
    assert [plan.safe_users(n_max) for n_max in (10, 24, 60)] == [8, 19, 19]  # 0.8 x 24 = 19.2


def test_without_a_prediction_a_person_says_where_to_begin() -> None:
    with pytest.raises(ScenarioError, match=r"give search\.start_users"):
        plan_search(a_search(), None, 1000)


def test_the_load_of_a_stage_scenario_can_be_searched() -> None:
    staged = a_scenario(limits={"tpot_s": 0.1})
    assert searching(staged).stages == ()
    assert plan_search(searching(staged), a_prediction(), 1000).start_users == 31


def test_stages_are_followed_to_their_end_and_stay_there() -> None:
    def held(users: int) -> PlannedStage:
        return PlannedStage(
            index=users, label="", users=users, hold_s=2.0, settle_s=1.0, spawn_rate_per_s=1.0
        )

    course = StagedCourse((held(0), held(1)))
    seen = [course.step(Moment(elapsed_s=s, at_ns=0, users=0)) for s in (0.0, 2.0, 4.0, 0.0)]
    assert [None if step is None else step.stage.index for step in seen] == [0, 1, None, None]
    assert course.is_complete
