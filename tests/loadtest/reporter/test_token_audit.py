"""Other lengths than planned make another load of it, unless the scenario lets answers end by themselves."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fake_run import FakeRun, FakeStage, verdict_of

from estimator.spec import Lengths
from loadtest.records import RequestRecord
from loadtest.reporter.method_text import method
from loadtest.reporter.observation import Window
from loadtest.reporter.question import answer
from loadtest.reporter.token_audit import (
    TokenAudit,
    audit_tokens,
    token_doubts,
    token_doubts_of_levels,
    token_notes,
)
from loadtest.request_table import RequestTable
from loadtest.scenario import Scenario, Stage
from loadtest.scenario.dataset import Dataset
from loadtest.scenario.parts import Session

WHOLE = Scenario(
    name="whole",
    endpoint="chat",
    input_tokens=Lengths.constant(100),
    output_tokens=Lengths.constant(100),
    stages=(Stage(users=8, hold_s=60.0),),
)
BY_ITSELF = replace(WHOLE, ignore_eos=False)
TALK = replace(BY_ITSELF, session=Session(turns=Lengths.constant(3)))

TALKS = Dataset(file="talks.json", format="sharegpt")


def doubted(scenario: Scenario, *, prompts: int = 1000, answers: int = 1000) -> list[str]:
    """What each doubt is about, of ten answers that should have had a thousand tokens each way."""
    audit = TokenAudit(
        answers=10,
        told=10,
        planned_input_tokens=1000,
        input_tokens=prompts,
        planned_output_tokens=1000,
        output_tokens=answers,
    )
    return list(token_doubts(audit, scenario))


@pytest.mark.parametrize(("answers", "found"), [(1000, []), (900, []), (899, ["answers"])])
def test_answers_that_were_asked_for_whole_may_miss_a_tenth(answers: int, found: list[str]) -> None:
    assert doubted(WHOLE, answers=answers) == found


def test_an_answer_that_may_end_by_itself_has_no_lower_bound_and_keeps_its_upper_one() -> None:
    assert doubted(BY_ITSELF, answers=10) == []
    assert doubted(BY_ITSELF, answers=1101) == ["answers"]
    tools = replace(WHOLE, tools=({"type": "function"},))
    assert doubted(tools, answers=10) == []


def test_prompts_fall_short_only_where_they_repeat_such_answers() -> None:
    assert doubted(BY_ITSELF, prompts=900) == doubted(WHOLE, prompts=900) == ["prompts"]
    assert doubted(TALK, prompts=900, answers=300) == []
    assert doubted(replace(TALK, ignore_eos=True), prompts=900, answers=300) == ["prompts", "answers"]


def test_recorded_answers_are_of_a_known_length_whatever_the_server_says() -> None:
    replay = replace(TALK, session=Session(answers="recorded"), dataset=TALKS, input_tokens=None)
    assert doubted(replay, prompts=900, answers=300) == ["prompts"]


def bundled(answers: int, *, chunks: int, tokens: int) -> TokenAudit:
    """So many answers alike, besides others whose events held a token each."""
    return TokenAudit(
        answers=20,
        told=20,
        bundled=answers,
        bundled_chunks=answers * chunks,
        bundled_tokens=answers * tokens,
    )


def test_a_reader_is_told_by_how_much_tpot_may_be_too_small() -> None:
    (note,) = token_notes(bundled(10, chunks=10, tokens=40))
    assert "10 of 20 answers came with 4.0 tokens an event" in note
    assert "would be 8% higher" in note  # 39 later tokens, or 36


def test_nothing_is_said_where_it_hardly_matters_or_there_is_no_tpot() -> None:
    assert token_notes(TokenAudit()) == ()
    assert token_notes(bundled(10, chunks=1, tokens=40)) == ()
    assert token_notes(bundled(10, chunks=100, tokens=120)) == ()


def test_the_report_of_a_run_tells_it() -> None:
    several = FakeStage(users=36, chunks=64)  # of 256 tokens
    assert any("4.0 tokens an event" in line for line in method(verdict_of(FakeRun(stages=(several,)))))
    assert not any(
        "tokens an event" in line for line in method(verdict_of(FakeRun(stages=(FakeStage(users=36),))))
    )


def test_a_level_of_short_answers_is_not_made_good_by_the_other_levels() -> None:
    """Nine levels as planned and one with four fifths of the tokens: 98% together."""
    asked = RequestRecord(
        worker=0,
        seq=0,
        outcome="ok",
        endpoint="completions",
        planned_input_tokens=100,
        planned_output_tokens=100,
        intended_ns=0,
        done_ns=1,
        input_tokens=100,
        output_tokens=100,
        chunks=80,
    )
    levels = [
        Window(index=i, label=f"{i} users", users=i, start_ns=i, settled_ns=i, end_ns=i + 1)
        for i in range(10)
    ]
    rows = [
        replace(asked, seq=i, intended_ns=i, done_ns=i + 1, output_tokens=80 if i == 4 else 100)
        for i in range(10)
    ]
    requests = RequestTable.of(rows)
    audits = [(level.label, answer(requests, audit_tokens([level]))) for level in levels]
    (doubt,) = token_doubts_of_levels(audits, WHOLE)
    assert doubt.endswith("(answers had 80% of the planned tokens) at 4 users")
    assert token_doubts_of_levels(audits[:4], WHOLE) == ()
