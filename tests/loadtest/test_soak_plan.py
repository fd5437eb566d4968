"""A soak is the same requests, one load, and dips in which nothing is asked."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from estimator.spec import Lengths
from loadtest.conductor.course import Moment, StagedCourse
from loadtest.conductor.plan import plan_stages
from loadtest.conductor.soak_news import SoakNews
from loadtest.records import Sample
from loadtest.run_folder import RunFolder
from loadtest.scenario import Scenario, ScenarioError, SearchAsked, SoakAsked, Stage, parse_scenario, soaking
from loadtest.scenario.parts import ArrivalKind, Arrivals
from loadtest.scenario.reading import scenario_body


def a_scenario(*stages: Stage, arrivals: ArrivalKind = "closed") -> Scenario:
    lengths = Lengths.constant(256)
    return Scenario(
        name="s",
        input_tokens=lengths,
        output_tokens=lengths,
        stages=stages or (Stage(of="guaranteed", ratio=0.8, hold_s=9.0),),
        arrivals=Arrivals(kind=arrivals),
        settle_s=5.0,
        spawn_rate_per_s=20.0,
    )


def course_of(asked: SoakAsked) -> StagedCourse:
    return StagedCourse(plan_stages(soaking(a_scenario(), asked), None))


def test_each_hour_of_a_long_soak_ends_with_a_minute_in_which_nothing_is_asked() -> None:
    planned = plan_stages(soaking(a_scenario(), SoakAsked(users=200, hours=4)), None)
    assert [(stage.users, stage.hold_s) for stage in planned] == [(200, 3540.0), (0, 60.0)] * 4
    assert [stage.is_dip for stage in planned] == [False, True] * 4
    assert planned[1].label == "dip: nothing is asked"


def test_a_short_soak_has_two_dips_that_take_no_more_than_a_fifth_of_it() -> None:
    stages = soaking(a_scenario(), SoakAsked(users=10, hours=1 / 15)).stages
    assert [(stage.users, stage.hold_s) for stage in stages] == [(10, 96.0), (0, 24.0)] * 2


def test_how_often_and_how_long_the_dips_are_can_be_said() -> None:
    stages = soaking(a_scenario(), SoakAsked(users=1, hours=1, every_s=900, dip_s=100)).stages
    assert [stage.hold_s for stage in stages] == [800.0, 100.0] * 4


def test_all_users_leave_at_once_and_a_load_is_judged_when_the_last_has_come_back_and_settled() -> None:
    held, dip = plan_stages(soaking(a_scenario(), SoakAsked(users=200, hours=4)), None)[:2]
    assert (dip.spawn_rate_per_s, dip.settle_s) == (200.0, 0.0)
    assert (held.spawn_rate_per_s, held.settle_s) == (20.0, 5.0 + 200 / 20)


def test_a_scenario_of_stages_without_dips_is_planned_as_ever() -> None:
    (stage,) = plan_stages(a_scenario(Stage(users=200, hold_s=60.0)), None)
    assert stage.settle_s == 5.0


def test_a_search_becomes_a_soak_and_a_soak_reads_back_from_its_manifest() -> None:
    searching = dataclasses.replace(
        a_scenario(),
        stages=(),
        search=SearchAsked(),
        limits=dataclasses.replace(a_scenario().limits, ttft_s=1.0),
    )
    soak = soaking(searching, SoakAsked(users=3, hours=1))
    assert soak.search is None
    assert parse_scenario(scenario_body(soak)) == soak


def test_a_soak_without_room_for_its_users_names_the_seconds() -> None:
    with pytest.raises(ScenarioError, match=r"there are 14\.4 s of load, and 200 users take 15 s"):
        soaking(a_scenario(), SoakAsked(users=200, hours=0.01))


def test_an_open_loop_is_refused() -> None:
    stage = Stage(users=9, rate_per_s=2.0, hold_s=60.0)
    scenario = a_scenario(stage, arrivals="poisson")
    with pytest.raises(ScenarioError, match="arrivals of kind poisson do not follow"):
        soaking(scenario, SoakAsked(users=9, hours=1))


def test_a_scenario_of_dips_alone_is_refused() -> None:
    with pytest.raises(ScenarioError, match="every stage has 0 users"):
        a_scenario(Stage(users=0, hold_s=9.0))


def test_a_dip_lasts_from_the_last_answer() -> None:
    course = course_of(SoakAsked(users=2, hours=1))

    def users_wanted(elapsed_s: float, users: int) -> int | None:
        step = course.step(Moment(elapsed_s=elapsed_s, at_ns=0, users=users))
        return None if step is None else step.stage.users

    assert users_wanted(0.0, 0) == 2
    assert users_wanted(1740.0, 2) == 0
    assert users_wanted(1785.0, 1) == 0  # one answer still comes
    assert users_wanted(1844.0, 0) == 0
    assert users_wanted(1845.0, 0) == 2


def test_the_news_are_a_line_a_minute_and_say_what_is_seen(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "soak")
    writer = folder.samples_writer("collector")
    news = SoakNews(folder, plan_stages(soaking(a_scenario(), SoakAsked(users=2, hours=4)), None))
    assert news.line(59.0) is None
    assert news.line(60.0) == "0:01 h of 4:00 h: nothing seen"
    for running in (3.0, 7.0):
        signals = {"running": running, "waiting": 1.0, "kv_usage_ratio": 0.25}
        writer.append(Sample(at_ns=int(running), source="engine", target="t", signals=signals))
    writer.append(Sample(at_ns=9, source="engine", target="t", signals={}, gap="timeout"))
    assert news.line(61.0) is None
    assert news.line(4500.0) == "1:15 h of 4:00 h: 7 running, 1 waiting, KV 25.0%"
    writer.close()
