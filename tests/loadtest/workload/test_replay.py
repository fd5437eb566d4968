"""Whole conversations of a dataset: each turn with the history before it, planned as it will be counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from workloads import CHAT, a_scenario, an_asker, conversation

from loadtest.scenario import ScenarioError, parse_scenario, scenario_body
from loadtest.workload.outlook import outlook
from loadtest.workload.plan import Planner


def a_talk(*said: str) -> dict[str, Any]:
    """A conversation; a person and the model take turns in it."""
    speakers = ("human", "gpt")
    return {"conversations": [{"from": speakers[n % 2], "value": text} for n, text in enumerate(said)]}


TALKS = [a_talk(*(f"{n} {what * 40}" for what in "qarbsc")) for n in range(5)]


def dataset(folder: Path, talks: list[Any] = TALKS, **changes: Any) -> dict[str, Any]:
    file = folder / "talks.json"
    file.write_text(json.dumps(talks), encoding="utf-8")
    return {"file": str(file), "format": "sharegpt", **changes}


def replayed(folder: Path, lengths: dict[str, Any] | None = None, **session: Any) -> Any:
    return a_scenario(
        lengths or {}, endpoint="chat", dataset=dataset(folder, unique=False), session=session, seed=3
    )


def test_later_turns_repeat_the_history_with_the_answers_that_were_served(tmp_path: Path) -> None:
    asker = an_asker(replayed(tmp_path, think_s={"kind": "constant", "mean_s": 2}))
    assert asker.keeps_text
    asks = list(conversation(asker, 0, "so it was served"))
    assert [(ask.session, ask.turn, ask.think_s) for ask in asks] == [(0, 0, 0.0), (0, 1, 2.0), (0, 2, 2.0)]
    said = [(message["role"], message["content"]) for message in asks[2].body["messages"]]
    name = said[0][1][:1]  # which of the conversations it is
    assert said == [
        ("user", f"{name} {'q' * 40}"),
        ("assistant", "so it was served"),
        ("user", f"{name} {'r' * 40}"),
        ("assistant", "so it was served"),
        ("user", f"{name} {'s' * 40}"),
    ]


def test_or_with_the_answers_that_were_recorded_and_then_no_text_is_kept(tmp_path: Path) -> None:
    asker = an_asker(replayed(tmp_path, answers="recorded"))
    assert not asker.keeps_text
    *_, last = conversation(asker, 0, "")
    answers = [m["content"][2:3] for m in last.body["messages"] if m["role"] == "assistant"]
    assert answers == ["a", "b"]


def test_workers_deal_out_the_conversations_among_them(tmp_path: Path) -> None:
    scenario = replayed(tmp_path)
    both = [an_asker(scenario, worker=worker, workers=2) for worker in (0, 1)]
    dealt = [list(conversation(both[place % 2], place // 2)) for place in range(5)]
    opened = {asks[0].body["messages"][0]["content"] for asks in dealt}
    assert len(opened) == 5
    for asks in dealt:
        assert len({message["content"][0] for message in asks[-1].body["messages"][::2]}) == 1


@pytest.mark.parametrize(("answers", "longer"), [("served", 90), ("recorded", 0)])
def test_longer_answers_make_the_later_prompts_longer_only_where_they_are_repeated(
    answers: str, longer: int, tmp_path: Path
) -> None:
    as_recorded = replayed(tmp_path, answers=answers).dataset.counted[0]
    recorded_tokens = as_recorded.output_tokens
    given = replayed(tmp_path, {"output_tokens": recorded_tokens + 90}, answers=answers).dataset.counted[0]
    assert given.input_tokens == as_recorded.input_tokens
    assert given.later[0][0] == as_recorded.later[0][0] + longer
    assert given.later[1][0] == as_recorded.later[1][0] + 2 * longer


def test_a_conversation_ends_before_a_turn_that_has_no_room(tmp_path: Path) -> None:
    whole = replayed(tmp_path).dataset.counted[0].turns
    room = sum(whole[1])
    assert {len(row.turns) for row in replayed(tmp_path, context_tokens_max=room).dataset.counted} == {2}
    asks = list(conversation(an_asker(replayed(tmp_path, context_tokens_max=room)), 0))
    assert [(ask.input_tokens, ask.output_tokens) for ask in asks] == list(whole[:2])
    with pytest.raises(ScenarioError, match="context_tokens_max has no room for any conversation"):
        replayed(tmp_path, context_tokens_max=3)


def test_what_a_server_does_not_take_is_refused_or_cut_where_that_is_allowed(tmp_path: Path) -> None:
    found = replayed(tmp_path).dataset
    room = sum(found.counted[0].turns[1])
    with pytest.raises(ScenarioError, match=r"5 of 5 rows .*skip_long: true"):
        found.fitted(room)
    cut = a_scenario(
        {}, endpoint="chat", dataset=dataset(tmp_path, unique=False, skip_long=True), session={}
    ).dataset
    assert cut is not None
    assert {len(row.turns) for row in cut.fitted(room).counted} == {2}


def test_what_follows_a_speaker_out_of_turn_is_not_replayed(tmp_path: Path) -> None:
    odd = a_talk("one", "two", "three", "four")
    odd["conversations"][2]["from"] = "system"
    unanswered = a_talk("one", "two", "three")
    scenario = a_scenario({}, endpoint="chat", dataset=dataset(tmp_path, [odd, unanswered]), session={})
    assert scenario.dataset is not None
    assert [len(row.turns) for row in scenario.dataset.counted] == [1, 1]


def test_the_outlook_and_the_prediction_count_every_turn(tmp_path: Path) -> None:
    scenario = replayed(tmp_path)
    seen = outlook(scenario, CHAT)
    turns = [turn for row in scenario.dataset.counted for turn in row.turns]
    assert seen.turns_mean == 3
    assert seen.request_tokens_max == max(map(sum, turns))
    assert seen.input_tokens.mean == pytest.approx(sum(prompt for prompt, _ in turns) / len(turns), rel=0.02)
    plans = [plan for seq in range(5) for plan in Planner(scenario, 0, 1).conversation(seq)]
    new = sum(plan.added_tokens for plan in plans) / sum(plan.input_tokens for plan in plans)
    assert seen.repeated_ratio == pytest.approx(1 - new)
    assert 0.2 < seen.repeated_ratio < 0.8


def test_its_lengths_survive_the_manifest(tmp_path: Path) -> None:
    scenario = replayed(tmp_path, answers="recorded")
    assert parse_scenario(json.loads(json.dumps(scenario_body(scenario)))) == scenario


def test_without_a_session_only_the_first_exchange_is_sent(tmp_path: Path) -> None:
    scenario = a_scenario({}, endpoint="chat", dataset=dataset(tmp_path))
    assert scenario.dataset is not None
    assert {row.later for row in scenario.dataset.counted} == {()}
    assert len(list(conversation(an_asker(scenario), 0))) == 1


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"session": {"turns": 3}}, "session.turns comes from the dataset"),
        ({"session": {}, "endpoint": "completions"}, "session needs endpoint: chat"),
        ({"session": {}, "dataset": {"format": "jsonl"}}, "use format: sharegpt, or leave session out"),
        ({"session": {"answers": "made up"}}, "session.answers"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: Any, sentence: str, tmp_path: Path) -> None:
    body = {"endpoint": "chat", **changes, "dataset": {**dataset(tmp_path), **changes.get("dataset", {})}}
    with pytest.raises(ScenarioError, match=sentence):
        a_scenario({}, **body)


@pytest.mark.parametrize(
    ("session", "sentence"),
    [({}, "'session.turns' is missing"), ({"turns": 2, "answers": "recorded"}, "needs a dataset")],
)
def test_a_session_without_a_dataset_says_its_turns(session: Any, sentence: str) -> None:
    with pytest.raises(ScenarioError, match=sentence):
        a_scenario(endpoint="chat", session=session)
