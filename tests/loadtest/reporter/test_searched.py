"""The report of a search: it signs what was certified, and says what the search said."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import pytest
from fake_run import SECOND_NS, SETTLE_S, STAGE_S, FakeRun, FakeStage

from loadtest.records import Event
from loadtest.reporter.lines import five_lines
from loadtest.reporter.observation import Observation
from loadtest.reporter.pages import html_page, json_page, markdown_page
from loadtest.reporter.saturation import observe
from loadtest.reporter.searched import doubts_of_levels
from loadtest.reporter.stages import windows
from loadtest.reporter.verdict import Verdict, judge
from loadtest.scenario import Limits
from loadtest.search_result import Choice, Finding, LevelVerdict, Probe, Role, SearchResult


def a_probe(
    number: int, users: int, verdict: LevelVerdict, role: Role = "search", *, n: int = 600, k: int = 2
) -> Probe:
    return Probe(
        choice=Choice(users=users, role=role, why="it is asked"),
        began_s=number * STAGE_S,
        settled_s=number * STAGE_S + SETTLE_S,
        ended_s=(number + 1) * STAGE_S,
        finding=Finding(
            verdict=verdict,
            n=n,
            k=k,
            design_effect=8.0,
            because=f"{k} of {n} requests violate",
            share_at_most=0.04,
        ),
    )


def a_result(*probes: Probe) -> SearchResult:
    """20 hold, 21 do not; 16 = floor(0.8 x 20) is certified where a probe says so."""
    certificate = next((probe.finding for probe in probes if probe.choice.role == "certify"), None)
    return SearchResult(
        n_max=20,
        breaks=21,
        n_safe=16,
        verdict="INCONCLUSIVE" if certificate is None else certificate.verdict,
        reason="the safe level was not certified" if certificate is None else certificate.because,
        is_monotone=True,
        certificate=certificate,
        probes=probes,
        minutes=3.0,
    )


LEVELS = (a_probe(0, 20, "PASS"), a_probe(1, 21, "FAIL", k=90), a_probe(2, 16, "PASS", "certify", n=900, k=1))


@dataclass(frozen=True, kw_only=True)
class SearchedRun(FakeRun):
    """Its stages say when they had settled only once they had."""

    found: SearchResult

    def observed(self) -> Observation:
        rows, events = self.rows(), []
        for event in rows.events:
            if event.event != "stage":
                events.append(event)
                continue
            events.append(replace(event, data={**event.data, "settle_s": None}))
            settled_ns = event.at_ns + int(SETTLE_S * SECOND_NS)
            events.append(Event(at_ns=settled_ns, event="settled", data={"index": event.data["index"]}))
        return observe(replace(rows, events=tuple(events)), self.manifest, self.slots, self.found)

    def verdict(self) -> Verdict:
        return judge(self.prediction, self.observed())


def a_run(*probes: Probe, **changes: object) -> SearchedRun:
    stages = tuple(FakeStage(users=probe.users, waiting=3.0) for probe in probes)
    return SearchedRun(stages=stages, found=a_result(*probes), **changes)  # type: ignore[arg-type]


def test_the_number_that_is_signed_is_the_level_that_was_certified() -> None:
    verdict = a_run(*LEVELS).verdict()
    assert (verdict.status, verdict.n_max, verdict.n_safe, verdict.exit_code) == ("PASS", 20, 16, 0)
    assert (verdict.evidence.n, verdict.evidence.k) == (900, 1)


@pytest.mark.parametrize(("said", "exit_code"), [("FAIL", 1), ("INCONCLUSIVE", 4)])
def test_a_certification_that_did_not_pass_signs_nothing(said: LevelVerdict, exit_code: int) -> None:
    verdict = a_run(*LEVELS[:2], a_probe(2, 16, said, "certify")).verdict()
    assert (verdict.status, verdict.exit_code) == (said, exit_code)
    assert verdict.reason == "2 of 600 requests violate"


def test_a_search_that_was_broken_off_says_what_is_missing() -> None:
    verdict = a_run(*LEVELS[:2]).verdict()
    assert (verdict.status, verdict.reason) == ("INCONCLUSIVE", "the safe level was not certified")
    assert verdict.n_max == 20


def test_a_slow_client_voids_a_search_whatever_it_found() -> None:
    assert a_run(*LEVELS, loop_lag_s=0.2).verdict().status == "VOID"


def test_a_level_whose_users_were_not_in_flight_proves_nothing() -> None:
    held, broke, _ = a_run(*LEVELS).observed().stages
    idle = replace(held, shortfall="only 12.0 requests in flight")
    doubted = "whether 20 users hold (only 12.0 requests in flight)"
    assert doubts_of_levels((held, idle), Limits()) == (doubted,)
    assert doubts_of_levels((held, replace(broke, shortfall=idle.shortfall)), Limits()) == ()


def test_a_limit_on_preemptions_that_nobody_could_count_is_not_known_to_hold() -> None:
    held, *_ = a_run(*LEVELS).observed().stages
    unseen = replace(held, preemptions=None)
    assert doubts_of_levels((unseen,), Limits()) == ()
    (doubt,) = doubts_of_levels((unseen,), Limits(preemptions_max_per_100_requests=1.0))
    assert "no preemption counter" in doubt


def test_queues_and_preemptions_are_shown_and_do_not_judge_a_level() -> None:
    observation = a_run(*LEVELS).observed()
    assert [stage.waiting_median for stage in observation.stages] == [3.0, 3.0, 3.0]
    assert [stage.faults for stage in observation.stages] == [(), ("90 of 600 requests violate",), ()]
    assert observation.first_broken == observation.stages[1]


def test_the_five_lines_name_the_bracket_and_what_it_cost() -> None:
    lines = five_lines(a_run(*LEVELS).verdict(), "report.html")
    assert "20 held · 21 does not   (3 probes in 3.0 minutes; wall: " in lines[1]
    assert lines[4].startswith("SIGN-OFF    16 parallel requests (20% buffer)    PASS")


def test_a_level_that_ended_too_soon_is_not_said_to_break() -> None:
    run = a_run(LEVELS[0], a_probe(1, 21, "INCONCLUSIVE"), LEVELS[2])
    assert "20 held · 21 could not be told   (" in five_lines(run.verdict(), "report.html")[1]


def test_the_pages_say_how_the_limit_was_found() -> None:
    run = a_run(*LEVELS)
    verdict = run.verdict()
    report = json.loads(json_page(verdict, run.manifest))
    assert [probe["choice"]["users"] for probe in report["observation"]["search"]["probes"]] == [20, 21, 16]
    for page in (html_page(verdict, run.manifest, "r"), markdown_page(verdict, run.manifest, "r")):
        assert "1 of the 900 requests sent at 16 users once the limit was found" in page
        assert "The search began at the prediction" in page


def test_a_stage_is_judged_from_when_it_said_that_it_had_settled() -> None:
    stage = {"users": 3, "settle_s": None}
    events = [
        Event(at_ns=10, event="stage", data={"index": 0, **stage}),
        Event(at_ns=14, event="settled", data={"index": 0}),
        Event(at_ns=20, event="stage", data={"index": 1, **stage}),
        Event(at_ns=30, event="run_end", data={}),
    ]
    assert [(window.settled_ns, window.end_ns) for window in windows(events)] == [(14, 20), (30, 30)]
