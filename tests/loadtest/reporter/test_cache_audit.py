"""A prefix cache that helps more than the scenario says makes the limit too high, and the run says so."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fake_run import FakeRun, FakeStage, verdict_of

from estimator.spec import Lengths
from loadtest.records import Sample
from loadtest.reporter.cache_audit import cache_doubts, cache_notes, hit_ratio, planned_hit_ratio
from loadtest.reporter.method_text import method
from loadtest.reporter.observation import Window
from loadtest.scenario import Scenario, Stage
from loadtest.scenario.parts import Session, SharedPrefix
from loadtest.scenario.trace import Trace

S = 1_000_000_000
UNIQUE = Scenario(
    name="unique",
    input_tokens=Lengths.constant(1000),
    output_tokens=Lengths.constant(10),
    stages=(Stage(users=8, hold_s=60.0),),
)
CHAT = replace(UNIQUE, endpoint="chat")
WINDOW = Window(index=0, label="8 users", users=8, start_ns=0, settled_ns=10 * S, end_ns=20 * S)


def look(at_s: float, **signals: float) -> Sample:
    return Sample(at_ns=int(at_s * S), source="engine", target="t", signals=signals)


def looks(hits: float, *, before: float = 0.0) -> list[Sample]:
    """A thousand tokens looked up in the window, so many of them found; `before` of a hundred before it."""
    return [
        look(5, prefix_cache_queries_total=100, prefix_cache_hits_total=before),
        look(10, prefix_cache_queries_total=200, prefix_cache_hits_total=before + 50),
        look(19, prefix_cache_queries_total=1200, prefix_cache_hits_total=before + 50 + hits),
        look(25, prefix_cache_queries_total=9000, prefix_cache_hits_total=9000),
    ]


def test_the_share_is_that_of_the_window_alone() -> None:
    assert hit_ratio(looks(30, before=90), WINDOW) == pytest.approx(0.03)


def test_lmdeploy_counts_no_look_ups_so_that_its_prompts_stand_for_them() -> None:
    engine = [
        look(11, prompt_tokens_total=0, prefix_cache_hits_total=0),
        look(19, prompt_tokens_total=2000, prefix_cache_hits_total=500),
    ]
    assert hit_ratio(engine, WINDOW) == pytest.approx(0.25)


@pytest.mark.parametrize(
    "engine",
    [
        [],
        [look(11, running=8)],
        [look(11, prefix_cache_queries_total=5, prefix_cache_hits_total=5)],
        [look(11, prefix_cache_hits_total=0), look(19, prefix_cache_hits_total=9)],
    ],
)
def test_what_the_server_does_not_count_is_no_finding(engine: list[Sample]) -> None:
    assert hit_ratio(engine, WINDOW) is None
    assert cache_doubts(UNIQUE, engine, [WINDOW]) == ()


def test_a_hundredth_of_unique_prompts_may_be_found_and_no_more() -> None:
    assert cache_doubts(UNIQUE, looks(10), [WINDOW]) == ()
    (doubt,) = cache_doubts(UNIQUE, looks(20), [WINDOW])
    assert "the run is inflated (2% of the prompt tokens at 8 users were found there" in doubt
    assert "no two prompts were to begin alike" in doubt


def test_a_chat_template_begins_every_prompt_alike() -> None:
    assert planned_hit_ratio(CHAT) == pytest.approx(0.064)
    assert cache_doubts(CHAT, looks(64), [WINDOW]) == ()
    assert "at most 6% were to be" in cache_doubts(CHAT, looks(100), [WINDOW])[0]


@pytest.mark.parametrize(
    ("prefix", "planned"),
    [
        (SharedPrefix(tokens=400), 0.4),
        (SharedPrefix(share=0.7, groups=3), 0.7),
        (SharedPrefix(tokens=9000), 1.0),
    ],
)
def test_a_prefix_that_is_stated_may_be_found(prefix: SharedPrefix, planned: float) -> None:
    scenario = replace(UNIQUE, shared_prefix=prefix)
    assert planned_hit_ratio(scenario) == pytest.approx(planned)
    assert cache_doubts(scenario, looks(1000 * planned), [WINDOW]) == ()
    assert bool(cache_doubts(scenario, looks(1000), [WINDOW])) == (planned < 1)


@pytest.mark.parametrize(
    "scenario",
    [
        replace(CHAT, session=Session(turns=Lengths.constant(4))),
        replace(CHAT, system="You are helpful.", tools=({"type": "function"},)),
        replace(CHAT, tools=({"type": "function"},)),
        replace(UNIQUE, input_tokens=None, output_tokens=None, trace=Trace(file="t", format="mooncake")),
    ],
)
def test_where_the_scenario_does_not_say_how_much_a_reader_is_told_that_it_was_not_judged(
    scenario: Scenario,
) -> None:
    assert planned_hit_ratio(scenario) is None
    assert cache_doubts(scenario, looks(700), [WINDOW]) == ()
    (note,) = cache_notes(scenario, looks(700), [WINDOW])
    assert "held of the prompts (at most 70% of the prompt tokens, at 8 users) is not judged: " in note
    assert "is not judged" in cache_notes(scenario, [], [WINDOW])[0]


@pytest.mark.parametrize("scenario", [UNIQUE, CHAT, replace(CHAT, system="be kind")])
def test_what_is_judged_needs_no_note(scenario: Scenario) -> None:
    assert cache_notes(scenario, looks(700), [WINDOW]) == ()


def test_a_system_prompt_has_at_most_as_many_tokens_as_bytes() -> None:
    spoken = replace(CHAT, system="ü" * 100)
    assert planned_hit_ratio(spoken) == pytest.approx(0.264)
    assert cache_doubts(spoken, looks(264), [WINDOW]) == ()
    assert "at most 26% were to be" in cache_doubts(spoken, looks(400), [WINDOW])[0]


def test_a_run_of_conversations_says_in_its_report_that_the_cache_was_not_judged() -> None:
    stages = (FakeStage(users=36, cache_hit_ratio=0.8),)
    talk = verdict_of(FakeRun(stages=stages, session=Session(turns=Lengths.constant(4))))
    assert talk.status == "PASS"
    assert any("at most 80% of the prompt tokens, at 36 users" in line for line in method(talk))


def test_a_run_that_the_cache_has_flattered_is_not_signed() -> None:
    stages = (FakeStage(users=36, cache_hit_ratio=0.0),)
    assert verdict_of(FakeRun(stages=stages)).status == "PASS"
    verdict = verdict_of(FakeRun(stages=(FakeStage(users=36, cache_hit_ratio=0.43),)))
    assert (verdict.status, verdict.exit_code) == ("INCONCLUSIVE", 4)
    assert "the run is inflated (43% of the prompt tokens at 36 users" in verdict.reason


def test_a_level_that_did_not_hold_signs_nothing_and_is_not_asked() -> None:
    stages = (FakeStage(users=36, cache_hit_ratio=0.0), FakeStage(users=40, cache_hit_ratio=0.9, waiting=5.0))
    assert verdict_of(FakeRun(stages=stages)).status == "PASS"


def test_the_share_that_the_scenario_states_is_signed() -> None:
    stages = (FakeStage(users=36, cache_hit_ratio=0.5),)
    prefix = SharedPrefix(share=0.5)
    assert verdict_of(FakeRun(stages=stages, shared_prefix=prefix)).status == "PASS"


@pytest.mark.parametrize(("stated", "is_doubted"), [(0.6, False), (0.56, False), (0.5, True), (0.7, True)])
def test_a_stated_share_of_hits_is_held_to_from_both_sides(stated: float, is_doubted: bool) -> None:
    """600 of a thousand tokens were found."""
    said = replace(UNIQUE, prefix_hit_ratio=stated)
    assert bool(cache_doubts(said, looks(600), [WINDOW])) == is_doubted


def test_a_stated_share_that_the_server_does_not_count_is_not_known() -> None:
    (doubt,) = cache_doubts(replace(UNIQUE, prefix_hit_ratio=0.5), [], [WINDOW])
    assert "does not count its hits" in doubt


def test_a_conversation_that_states_its_share_is_checked_as_well() -> None:
    said = replace(CHAT, session=Session(turns=Lengths.constant(3)))
    assert cache_doubts(said, looks(600), [WINDOW]) == ()
    assert cache_doubts(replace(said, prefix_hit_ratio=0.1), looks(600), [WINDOW])
