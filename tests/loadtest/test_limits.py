"""Limits are said once, in vLLM's words or ours; the command line beats the scenario, and is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_run import FakeRun, FakeStage, verdict_of
from hypothesis import given
from hypothesis import strategies as st
from workloads import a_scenario

from loadtest.cli.limit_flags import each_with_its_flag
from loadtest.cli.signoff import requested, signoff
from loadtest.scenario import (
    Limits,
    LimitsAsked,
    ScenarioError,
    limits_text,
    parse_scenario,
    read_scenario,
    scenario_body,
)
from loadtest.scenario.limits import parse_goodput
from loadtest.violations import preemption_fault


def test_goodput_is_read_as_vllm_reads_it() -> None:
    assert parse_goodput(["ttft:2000", "tpot:50", "e2el:30000"]) == {
        "ttft_s": 2.0,
        "tpot_s": 0.05,
        "e2e_s": 30.0,
    }


@pytest.mark.parametrize(
    ("pairs", "says"),
    [
        (["itl:5"], "'itl:5' is no limit"),
        (["ttft=5"], "'ttft=5' is no limit"),
        (["ttft:soon"], "no number of milliseconds"),
        (["ttft:0"], "above 0"),
        (["ttft:nan"], "above 0"),
        (["ttft:5", "ttft:6"], "given twice"),
    ],
)
def test_what_is_no_goodput_is_said_in_one_sentence(pairs: list[str], says: str) -> None:
    with pytest.raises(ScenarioError, match=says):
        parse_goodput(pairs)


def test_a_scenario_may_speak_vllms_words_but_not_say_a_limit_twice() -> None:
    assert a_scenario(limits={"goodput": "ttft:2000 tpot:50"}).limits == Limits(ttft_s=2.0, tpot_s=0.05)
    with pytest.raises(ScenarioError, match="ttft_s twice"):
        a_scenario(limits={"goodput": "ttft:2000", "ttft_s": 1.0})


def test_the_command_line_beats_the_scenario_and_leaves_what_it_does_not_name() -> None:
    said = Limits(ttft_s=1.0, tpot_s=0.1, percentile=90.0)
    asked = LimitsAsked(goodput=("ttft:500",), confidence=0.99, error_budget=0.0, max_preemptions=0.0)
    assert asked.over(said) == Limits(
        ttft_s=0.5,
        tpot_s=0.1,
        percentile=90.0,
        confidence=0.99,
        failures_max_ratio=0.0,
        preemptions_max_per_100_requests=0.0,
    )
    assert LimitsAsked().over(said) == said


@pytest.mark.parametrize(
    "wrong", [{"confidence": 95}, {"confidence": 0.2}, {"preemptions_max_per_100_requests": -1}]
)
def test_a_limit_that_cannot_be_is_refused_by_name(wrong: dict[str, float]) -> None:
    with pytest.raises(ScenarioError, match=f"limits.{next(iter(wrong))} must be"):
        a_scenario(limits=wrong)


def test_the_limits_in_force_are_stamped_into_the_run() -> None:
    scenario = a_scenario(limits={"goodput": "e2el:9000", "preemptions_max_per_100_requests": 2})
    assert parse_scenario(scenario_body(scenario)).limits == scenario.limits
    assert limits_text(scenario.limits) == (
        "e2el:9000 (ms) for 95% of requests at 0.95 confidence, at most 1.00% failed, "
        "at most 2 preemptions in 100 requests"
    )


def test_several_values_may_follow_one_flag() -> None:
    words = ["--search", "--goodput", "ttft:1", "tpot:2", "--host", "x", "--goodput", "e2el:3"]
    assert each_with_its_flag(words, "--goodput") == [
        *("--search", "--goodput", "ttft:1", "--goodput", "tpot:2", "--host", "x", "--goodput", "e2el:3"),
    ]


def test_a_sign_off_searches_under_the_limits_of_its_command_line() -> None:
    words = [
        "--scenario",
        "qwen-chat",
        "--goodput",
        "ttft:700",
        "e2el:9000",
        "--search",
        "--percentile",
        "99",
    ]
    asked = requested(signoff.make_context("signoff", words).params)
    assert asked.scenario.search is not None
    assert asked.scenario.limits == Limits(ttft_s=0.7, tpot_s=0.2, e2e_s=9.0, percentile=99.0)


@pytest.fixture
def search_without_limits(tmp_path: Path) -> Path:
    file = tmp_path / "open.yaml"
    file.write_text("{name: open, input_tokens: 9, output_tokens: 9, search: {}}", encoding="utf-8")
    return file


def test_a_search_may_leave_its_limits_to_the_command_line(search_without_limits: Path) -> None:
    words = ["--scenario", str(search_without_limits), "--goodput", "ttft:700"]
    assert requested(signoff.make_context("signoff", words).params).scenario.limits == Limits(ttft_s=0.7)


def test_a_search_that_nobody_gives_limits_names_both_places(search_without_limits: Path) -> None:
    with pytest.raises(ScenarioError, match=r"open.yaml: .*: set ttft_s, .* or --goodput"):
        read_scenario(search_without_limits, LimitsAsked(percentile=99.0))


def test_a_limit_of_the_command_line_beats_the_words_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "said.yaml"
    limits = "{goodput: ttft:2000 tpot:50, percentile: 90}"
    file.write_text(
        f"{{name: a, input_tokens: 9, output_tokens: 9, search: {{}}, limits: {limits}}}", encoding="utf-8"
    )
    found = read_scenario(file, LimitsAsked(goodput=("ttft:700",)))
    assert found.limits == Limits(ttft_s=0.7, tpot_s=0.05, percentile=90.0)


def test_a_limit_that_is_wrong_by_itself_is_not_blamed_on_the_file(search_without_limits: Path) -> None:
    with pytest.raises(ScenarioError, match=r"^limits.confidence must be"):
        read_scenario(search_without_limits, LimitsAsked(goodput=("ttft:700",), confidence=95.0))


@given(st.lists(st.sampled_from(["--host", "x", "y", "-s"])))
def test_words_without_the_flag_stay_as_they_are(words: list[str]) -> None:
    assert each_with_its_flag(words, "--goodput") == words


def test_a_rate_of_preemptions_is_of_a_hundred_requests() -> None:
    one = Limits(preemptions_max_per_100_requests=1.0)
    assert preemption_fault(3, 300, one) == ""
    assert preemption_fault(4, 300, one) == "1.33 preemptions in 100 requests, at most 1 allowed"
    assert preemption_fault(1, 300, Limits()) == "1 preemptions"


@pytest.mark.parametrize(("most", "n_max"), [(None, 24), (1.0, 24), (20.0, 31)])
def test_a_stage_with_too_many_preemptions_does_not_hold(most: float | None, n_max: int) -> None:
    limits = Limits(ttft_s=2.0, preemptions_max_per_100_requests=most)
    run = FakeRun(stages=(FakeStage(users=24), FakeStage(users=31, preemptions=26)), limits=limits)
    verdict = verdict_of(run)
    assert verdict.n_max == n_max
    if most == 1.0:
        assert "preemptions in 100 requests, at most 1 allowed" in verdict.observation.stages[1].faults[0]


def test_a_higher_confidence_wants_more_requests() -> None:
    stages = (FakeStage(users=31),)
    usual, surer = (
        verdict_of(FakeRun(stages=stages, limits=Limits(ttft_s=2.0, confidence=confidence)))
        for confidence in (0.95, 0.999)
    )
    assert (usual.status, surer.status) == ("PASS", "INCONCLUSIVE")
