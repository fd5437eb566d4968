"""The search as a pure machine: what it tries, when it stops, and what it may never say."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from loadtest.conductor.search import Search
from loadtest.conductor.search.course import PROBES_MAX, SearchPlan
from loadtest.conductor.search.settle import has_settled
from loadtest.reporter.buffer import safe_limit
from loadtest.scenario import Limits
from loadtest.search_result import Probe, SearchResult

Q = 0.05
BUDGET_S = 3600.0


def plan(start: int, *, users_max: int = 100_000, budget_s: float = BUDGET_S) -> SearchPlan:
    return SearchPlan(start_users=start, users_max=users_max, q=Q, safe_users=safe_limit, budget_s=budget_s)


@dataclass
class Load:
    """Feeds a search: each level settles after 20 s, and its users send one request each every 10 s."""

    search: Search
    rate: Callable[[int], float]
    """Users -> share of requests that violate, spread evenly."""
    at_s: float = 0.0
    requests: int = 0

    def level(self) -> None:
        """Until the level under way ends."""
        level = self.search.command.level
        self.at_s += 20.0
        if self.search.tick(self.at_s).phase == "stop":
            return
        self.search.settled(self.at_s)
        rate = self.rate(self.search.command.users)
        while self.search.command.level == level and self.search.command.phase != "stop":
            for _ in range(max(1, self.search.command.users // 10)):
                self.requests += 1
                self.search.sent(str(self.requests), self.at_s)
                violates = int(self.requests * rate) > int((self.requests - 1) * rate)
                self.search.judged(str(self.requests), violates)
            self.at_s += max(1.0, 10 / self.search.command.users)
            self.search.tick(self.at_s)

    def run(self) -> SearchResult:
        while self.search.command.phase != "stop":
            self.level()
        assert self.search.result is not None
        return self.search.result


def searched(rate: Callable[[int], float], the_plan: SearchPlan) -> SearchResult:
    return Load(Search(the_plan, at_s=0.0), rate).run()


def cliff(limit: int) -> Callable[[int], float]:
    return lambda users: 0.0 if users <= limit else 0.5


@given(limit=st.integers(1, 400), wrong=st.floats(0.2, 5), levels=st.integers(0, 6))
@settings(max_examples=30, deadline=None)
def test_an_interrupted_search_that_goes_on_ends_as_if_nothing_had_been(
    limit: int, wrong: float, levels: int
) -> None:
    the_plan = plan(max(1, round(limit * wrong)))
    whole = searched(cliff(limit), the_plan)
    first = Load(Search(the_plan, at_s=0.0), cliff(limit))
    for _ in range(min(levels, len(whole.probes))):
        first.level()
    first.at_s += 7.0  # of the level under way, nothing is kept
    past = first.search.so_far
    second = Load(Search(the_plan, at_s=1e6, past=past), cliff(limit), at_s=1e6)
    again = second.run()
    assert again.probes[: len(past.probes)] == past.probes
    assert [probe.choice for probe in again.probes] == [probe.choice for probe in whole.probes]
    assert (again.n_max, again.n_safe, again.verdict) == (whole.n_max, whole.n_safe, whole.verdict)


def test_a_search_that_goes_on_has_what_is_left_of_its_budget() -> None:
    first = Load(Search(plan(40), at_s=0.0), cliff(100))
    first.level()
    past = first.search.so_far
    spent = replace(past, minutes=BUDGET_S / 60)
    assert Search(plan(40), at_s=1e6, past=spent).command.phase == "stop"
    second = Load(Search(plan(40), at_s=1e6, past=past), cliff(100), at_s=1e6)
    assert second.run().minutes > past.minutes > 0


@given(limit=st.integers(1, 400), wrong=st.floats(0.02, 20))
@settings(max_examples=40, deadline=None)
def test_the_limit_is_found_from_any_prediction(limit: int, wrong: float) -> None:
    result = searched(cliff(limit), plan(max(1, round(limit * wrong)), budget_s=1e9))
    assert result.breaks is not None
    assert result.n_max <= limit < result.breaks
    assert result.breaks <= max(result.n_max + 1, result.n_max * 1.05)
    assert result.verdict == "PASS" if result.n_safe else result.verdict == "INCONCLUSIVE"
    assert result.is_monotone


@pytest.mark.parametrize("wrong", [0.85, 0.9, 1.0, 1.1, 1.2])
def test_a_good_prediction_costs_five_levels(wrong: float) -> None:
    result = searched(cliff(100), plan(round(100 * wrong)))
    assert sum(probe.choice.role == "search" for probe in result.probes) <= 5


@pytest.mark.parametrize(("start", "limit", "levels"), [(1, 2000, 22), (2000, 1, 18), (2000, 300, 11)])
def test_a_prediction_far_off_is_left_faster_but_never_by_more_than_twice(
    start: int, limit: int, levels: int
) -> None:
    result = searched(cliff(limit), plan(start, budget_s=1e9))
    tried = [p.users for p in result.probes if p.choice.role == "search"]
    assert len(tried) <= levels
    assert all(after <= 2 * before for before, after in pairwise(tried))


def test_the_levels_of_a_search_say_why_they_were_tried_and_why_they_ended() -> None:
    result = searched(cliff(100), plan(90))
    assert [(p.users, p.choice.role, p.verdict) for p in result.probes] == [
        (90, "search", "PASS"),
        (113, "search", "FAIL"),
        (101, "search", "FAIL"),
        (95, "search", "PASS"),
        (98, "search", "PASS"),
        (78, "certify", "PASS"),
        (103, "above", "FAIL"),
    ]
    assert [p.choice.why for p in result.probes] == [
        "the prediction says the limit is here",
        "90 users hold and no level is known to break",
        "halfway between 90, which holds, and 113",
        "halfway between 90, which holds, and 101",
        "halfway between 95, which holds, and 101",
        "what is promised if 98 hold, proven with fresh requests",
        "one step above 98: does it really end there?",
    ]
    assert result.probes[0].finding.because == "0 of 270 requests violate: rather 2.50% than 10%"


def test_an_unknown_level_is_never_the_lower_end() -> None:
    result = searched(lambda users: 0.0 if users < 50 else 0.055, plan(60))
    unknown = [p.users for p in result.probes if p.verdict == "INCONCLUSIVE"]
    assert unknown
    assert result.n_max < min(unknown) == result.breaks


def test_a_server_that_cannot_serve_one_user_fails() -> None:
    result = searched(cliff(0), plan(10))
    assert (result.n_max, result.breaks, result.verdict) == (0, 1, "FAIL")
    assert result.reason == "not even one user holds"


def test_at_the_most_users_allowed_the_result_is_a_lower_bound() -> None:
    result = searched(cliff(1000), plan(40, users_max=64))
    assert (result.n_max, result.breaks, result.is_lower_bound) == (64, None, True)
    assert result.verdict == "PASS"


def test_a_level_that_passes_above_a_failed_one_is_tried_again_with_it() -> None:
    # the look one step above 100 lands on 105, which holds again
    result = searched(lambda users: 0.0 if users <= 100 or users == 105 else 0.5, plan(100))
    roles = [(p.users, p.choice.role, p.verdict) for p in result.probes if p.choice.role != "search"]
    assert roles == [
        (80, "certify", "PASS"),
        (105, "above", "PASS"),
        (103, "repeat", "FAIL"),
        (105, "repeat", "PASS"),
    ]
    assert not result.is_monotone
    assert result.n_max == 100


def test_the_look_above_is_left_out_where_that_level_failed_already() -> None:
    result = searched(cliff(15), plan(15))
    assert result.breaks == 16
    assert [p.users for p in result.probes if p.users == 16] == [16]
    assert not any(p.choice.role == "above" for p in result.probes)


def test_a_failed_certification_is_the_verdict() -> None:
    search = Search(plan(100), at_s=0.0)
    load = Load(search, cliff(100))
    while "promised" not in search.command.why:
        load.level()
    load.rate = lambda _: 0.3
    result = load.run()
    assert result.verdict == "FAIL"
    assert result.certificate is not None
    assert result.certificate.k > 0


def test_requests_from_before_the_level_settled_do_not_count() -> None:
    search = Search(plan(10), at_s=0.0)
    for i in range(100):
        search.sent(f"early {i}", 10.0)
    search.settled(20.0)
    for i in range(100):
        search.sent(f"told late {i}", 19.0)
        search.judged(f"told late {i}", True)
        search.judged(f"early {i}", True)
    assert search.tick(21.0).level == 0
    for i in range(200):
        search.sent(f"later {i}", 20.5)
        search.judged(f"later {i}", False)
    assert search.tick(22.0).level == 1


def test_live_evidence_fails_a_level_before_any_request_has_ended() -> None:
    search = Search(plan(50), at_s=0.0)
    search.settled(20.0)
    for i in range(50):
        search.sent(str(i), 21.0)
    for i in range(30):
        search.judged(str(i), True)
    assert search.tick(25.0).level == 1


def test_early_bad_news_alone_does_not_fail_a_large_level() -> None:
    """10 violations known, and the clean ones of 1,000 sent together with them not known yet."""
    search = Search(plan(1000), at_s=0.0)
    search.settled(20.0)
    for i in range(1000):
        search.sent(str(i), 21.0)
    for i in range(10):
        search.judged(str(99 * i), True)
    assert search.tick(25.0).level == 0


def test_one_crowded_moment_does_not_fail_a_level() -> None:
    """10 of the first 20 violate, as when a cache is full once; of three rounds hardly more do."""
    search = Search(plan(50), at_s=0.0)
    search.settled(20.0)
    for i in range(20):
        search.sent(str(i), 21.0)
        search.judged(str(i), i < 10)
    assert search.tick(22.0).level == 0
    for i in range(20, 1200):
        search.sent(str(i), 23.0)
        search.judged(str(i), False)
    search.tick(24.0)
    assert [p.verdict for p in search.so_far.probes] == ["PASS"]


def test_a_level_hears_three_requests_from_each_user() -> None:
    search = Search(plan(300), at_s=0.0)
    search.settled(20.0)
    for i in range(900):
        assert search.tick(21.0).level == 0
        search.sent(str(i), 21.0)
        search.judged(str(i), False)
    assert search.tick(22.0).level == 1


def test_early_good_news_alone_passes_nothing() -> None:
    """The oldest request still runs: the quick ones behind it say nothing about it."""
    search = Search(plan(10), at_s=0.0)
    search.settled(20.0)
    for i in range(1000):
        search.sent(str(i), 21.0)
    for i in range(1, 1000):
        search.judged(str(i), False)
    assert search.tick(25.0).level == 0
    search.judged("0", False)
    assert search.tick(26.0).level == 1


def test_a_request_is_judged_once() -> None:
    search = Search(plan(10), at_s=0.0)
    search.settled(20.0)
    search.sent("a", 21.0)
    for _ in range(100):
        search.judged("a", True)
    assert search.tick(25.0).level == 0


def test_when_the_budget_is_spent_the_bracket_so_far_is_the_answer() -> None:
    result = searched(cliff(100), plan(90, budget_s=100.0))
    assert result.minutes <= 100 / 60 + 0.1
    assert result.n_max == 90
    assert result.verdict == "INCONCLUSIVE"
    assert "budget" in result.probes[-1].finding.because


def test_the_search_leaves_time_to_certify() -> None:
    result = searched(cliff(100), plan(90, budget_s=250.0))
    assert result.verdict == "PASS"
    assert result.minutes <= (250 + 20) / 60  # time stands still while a level settles


@pytest.mark.parametrize(("start", "users_max"), [(0, 10), (11, 10)])
def test_a_plan_starts_within_its_range(start: int, users_max: int) -> None:
    with pytest.raises(ValueError, match="start_users"):
        plan(start, users_max=users_max)


def test_a_level_settles_after_the_change_has_passed() -> None:
    flat = [0.1] * 50
    assert not has_settled(9.0, 1.0, flat)
    assert has_settled(10.0, 1.0, flat)
    assert not has_settled(29.0, 20.0, flat)
    rising = [0.01 * i for i in range(50)]
    assert not has_settled(30.0, 20.0, rising)
    assert has_settled(120.0, 20.0, rising)


class AnyServer(RuleBasedStateMachine):
    """A server that answers as it likes: the search still ends, and never promises what it saw fail."""

    @initialize(
        start=st.integers(1, 400),
        more=st.integers(0, 2000),
        budget_s=st.sampled_from([60.0, 600.0, 3600.0, 1e7]),
    )
    def begin(self, start: int, more: int, budget_s: float) -> None:
        self.budget_s = budget_s
        self.the_plan = plan(start, users_max=start + more, budget_s=budget_s)
        self.search, self.twin = (Search(self.the_plan, at_s=0.0) for _ in range(2))
        self.at_s, self.longest_s, self.number = 0.0, 0.0, 0

    def both(self, event: str, *args: object) -> None:
        for search in (self.search, self.twin):
            getattr(search, event)(*args)

    def pass_time(self, seconds: float) -> None:
        self.at_s += seconds
        self.longest_s = max(self.longest_s, seconds)
        self.both("tick", self.at_s)

    @precondition(lambda self: self.search.command.phase != "stop")
    @rule(bad=st.sampled_from([0.0, 0.0, 0.0, 0.04, 0.06, 0.3, 1.0]), seed=st.integers(0, 9))
    def judge_a_level(self, bad: float, seed: int) -> None:
        rng, level = random.Random(seed), self.search.command.level
        self.both("settled", self.at_s)
        while self.search.command.level == level and self.search.command.phase != "stop":
            for _ in range(max(200, self.search.command.users)):
                self.number += 1
                self.both("sent", str(self.number), self.at_s)
                self.both("judged", str(self.number), rng.random() < bad)
            self.pass_time(5.0)

    @rule(seconds=st.floats(0, 100))
    def wait(self, seconds: float) -> None:
        before = self.search.result
        self.pass_time(seconds)
        assert before is None or self.search.result == before, "the end is the end"

    @invariant()
    def it_ends_within_forty_levels_and_its_budget(self) -> None:
        if hasattr(self, "search"):
            assert self.search.command.level <= PROBES_MAX
            if self.at_s >= self.budget_s:
                assert self.search.command.phase == "stop"
                result = self.search.result
                assert result is not None
                assert result.minutes * 60 <= self.budget_s + self.longest_s + 1e-6

    @invariant()
    def it_never_returns_a_level_that_failed_nor_promises_more_than_it_found(self) -> None:
        result = self.search.result if hasattr(self, "search") else None
        if result is None:
            return
        proven = {p.users for p in result.probes if p.verdict == "PASS"}
        failed = {p.users for p in result.probes if p.verdict == "FAIL" and p.choice.role != "certify"}
        assert result.n_max == 0 or result.n_max in proven
        assert all(result.n_max < users for users in failed)
        assert result.n_safe <= math.floor(0.8 * result.n_max)
        assert (result.verdict == "PASS") == (
            result.certificate is not None and result.certificate.verdict == "PASS"
        )

    @invariant()
    def it_is_deterministic(self) -> None:
        if hasattr(self, "search"):
            assert self.search.command == self.twin.command
            assert self.search.result == self.twin.result

    def teardown(self) -> None:
        """Whatever came before, a server that now answers one way brings it to its end."""
        if not hasattr(self, "search"):
            return
        while self.search.command.phase != "stop":
            self.judge_a_level(bad=0.0, seed=0)
        self.it_ends_within_forty_levels_and_its_budget()
        self.it_never_returns_a_level_that_failed_nor_promises_more_than_it_found()


TestAnyServer = AnyServer.TestCase
TestAnyServer.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)


def at_a_level(requests: int, *, limits: Limits | None = None) -> Search:
    """Settled, with so many requests sent and not judged; 10 users."""
    search = Search(replace(plan(10), limits=limits or Limits()), at_s=0.0)
    search.settled(20.0)
    for number in range(requests):
        search.sent(str(number), 21.0)
    return search


def first_probe(search: Search) -> Probe:
    search.tick(30.0)
    (probe,) = search.so_far.probes
    return probe


def test_a_request_that_we_cut_short_is_neither_good_nor_bad_and_holds_nobody_up() -> None:
    search = at_a_level(400)
    search.dropped("0")
    search.dropped("17")
    for number in range(400):
        search.judged(str(number), violates=False)
    assert (first_probe(search).finding.n, first_probe(search).finding.k) == (398, 0)


def test_a_request_that_was_judged_cannot_be_dropped() -> None:
    search = at_a_level(400)
    for number in range(400):
        search.judged(str(number), violates=number < 3)
    search.dropped("0")
    assert (first_probe(search).finding.n, first_probe(search).finding.k) == (400, 3)


@pytest.mark.parametrize(("failed", "verdict"), [(4, "PASS"), (5, "FAIL")])
def test_a_level_that_fails_more_than_the_error_budget_does_not_hold(failed: int, verdict: str) -> None:
    """Of 400 one in a hundred may fail, whatever share may be slow."""
    search = at_a_level(400)
    for number in range(400):
        search.judged(str(number), violates=number < failed)
    for number in range(failed):
        search.failed(str(number))
    probe = first_probe(search)
    assert probe.verdict == verdict
    if verdict == "FAIL":
        assert probe.finding.because == "5 of 400 requests failed"


@pytest.mark.parametrize(("most", "verdict"), [(None, "PASS"), (2.0, "PASS"), (1.9, "FAIL")])
def test_a_level_with_more_preemptions_than_may_be_does_not_hold(most: float | None, verdict: str) -> None:
    search = at_a_level(400, limits=Limits(preemptions_max_per_100_requests=most))
    for number in range(400):
        search.judged(str(number), violates=False)
    search.preempted(8.0)
    probe = first_probe(search)
    assert probe.verdict == verdict
    if verdict == "FAIL":
        assert probe.finding.because == "2 preemptions in 100 requests, at most 1.9 allowed"
