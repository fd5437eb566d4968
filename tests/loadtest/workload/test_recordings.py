"""Traces and datasets: read as they are written, refused by the line, and sent as they were recorded."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from workloads import CHAT, a_scenario, an_asker, counted

from loadtest.scenario import ScenarioError, parse_scenario, scenario_body
from loadtest.scenario.trace import Trace, fitted, looked_at, trace_rows
from loadtest.workload.prompts import joined

MOONCAKE = [
    {"timestamp": 2000, "input_length": 700, "output_length": 5, "hash_ids": [0, 1]},
    {"timestamp": 1000, "input_length": 1024, "output_length": 0, "hash_ids": [0, 2]},
    {"timestamp": 4500, "input_length": 30, "output_length": 7, "hash_ids": [3]},
]
AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:04.0319600,3180,8
2023-11-16 18:17:33.4590290,110,27
"""


def written(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def json_lines(rows: list[Any]) -> str:
    return "\n".join(map(json.dumps, rows)) + "\n"


@pytest.fixture
def mooncake(tmp_path: Path) -> dict[str, Any]:
    return {"file": written(tmp_path, "t.jsonl", json_lines(MOONCAKE)), "format": "mooncake"}


def test_mooncakes_rows_are_read_in_order_of_time(mooncake: dict[str, Any]) -> None:
    assert [tuple(row) for row in trace_rows(Trace(**mooncake))] == [
        (0.0, 1024, 1, (0, 2)),
        (1.0, 700, 5, (0, 1)),
        (3.5, 30, 7, (3,)),
    ]


def test_azures_rows_are_read(tmp_path: Path) -> None:
    trace = Trace(file=written(tmp_path, "a.csv", AZURE), format="azure")
    rows = trace_rows(trace)
    assert [(row.input_tokens, row.output_tokens) for row in rows] == [(4808, 10), (3180, 8), (110, 27)]
    assert [row.at_s for row in rows] == pytest.approx([0.0, 0.052, 29.479069], abs=1e-5)
    seen = looked_at(trace).seen
    assert seen is not None
    assert (seen.rows, seen.request_tokens_max, seen.input_tokens.longest) == (3, 4818, 4808)


def test_blocks_that_a_trace_calls_alike_are_alike_and_no_others(mooncake: dict[str, Any]) -> None:
    asker = an_asker(a_scenario({}, trace=mooncake))
    first, second, third = (asker.first(seq).body["prompt"] for seq in range(3))
    assert [len(prompt) for prompt in (first, second, third)] == [1024, 700, 30]
    assert first[:512] == second[:512]
    assert first[512:516] != second[512:516]
    assert third[:4] != first[:4]
    again = asker.first(3).body["prompt"]
    assert len(again) == 1024
    assert again[:4] != first[:4]  # the second time through nothing is cached from the first


def test_a_trace_sends_its_rows_in_turn_whoever_sends_them(mooncake: dict[str, Any]) -> None:
    scenario = a_scenario({}, trace=mooncake)
    both = [an_asker(scenario, worker=worker, workers=2) for worker in (0, 1)]
    dealt = [both[place % 2].first(place // 2) for place in range(6)]
    alone = [an_asker(scenario).first(place) for place in range(6)]
    assert [ask.body["prompt"][:512] for ask in dealt] == [ask.body["prompt"][:512] for ask in alone]
    assert [ask.output_tokens for ask in dealt] == [1, 5, 7, 1, 5, 7]


def test_prompts_too_short_to_be_unique_are_lengthened(tmp_path: Path) -> None:
    rows = [{"timestamp": 0, "input_length": 1, "output_length": 2}] * 40
    file = written(tmp_path, "short.jsonl", json_lines(rows))
    scenario = a_scenario({}, trace={"file": file, "format": "mooncake"}, endpoint="chat")
    asks = [an_asker(scenario).first(seq) for seq in range(40)]
    assert {ask.input_tokens for ask in asks} == {CHAT.overhead_tokens + 7}
    assert all(counted(ask) == ask.input_tokens for ask in asks)
    assert len({ask.body["messages"][0]["content"] for ask in asks}) == 40


def test_a_request_that_is_too_long_is_refused_with_the_count_or_cut(mooncake: dict[str, Any]) -> None:
    with pytest.raises(ScenarioError, match=r"2 requests of .* are longer than the 600 tokens .*clip: true"):
        fitted(Trace(**mooncake), 600)
    cut = fitted(Trace(**mooncake, clip=True), 600)
    assert [(row.input_tokens, row.output_tokens) for row in trace_rows(cut)] == [(599, 1), (599, 1), (30, 7)]
    assert cut.seen is not None
    assert cut.seen.request_tokens_max == 600
    assert fitted(Trace(**mooncake), 1025) == Trace(**mooncake)


@pytest.mark.parametrize(
    ("form", "text", "sentence"),
    [
        ("mooncake", '{"timestamp": 0}\n', "line 1: 'input_length' is missing"),
        ("mooncake", json_lines(MOONCAKE[:1]) + "{\n", "line 2: Expecting"),
        ("mooncake", "[]\n", "line 1: list indices"),
        ("mooncake", '{"timestamp": NaN, "input_length": 1, "output_length": 1}', "line 1: nan is no time"),
        ("mooncake", '{"timestamp": 0, "input_length": -1, "output_length": 1}', "-1 is no number of tokens"),
        ("mooncake", "", "has no rows"),
        ("azure", "a,b\n1,2\n", "has no column TIMESTAMP, ContextTokens, GeneratedTokens"),
        ("azure", AZURE.replace("4808", "many"), "line 2: invalid literal"),
        ("azure", AZURE.replace("2023-11-16 18:17:04.0319600", "noon"), "line 3: Invalid isoformat"),
        ("csv", "at_s,input_tokens,output_tokens\n1,2\n", "line 2: "),
        ("csv", "x" * 1_000_001, "line of more than 1,000,000 bytes"),
    ],
)
def test_a_wrong_trace_is_named_by_its_line(tmp_path: Path, form: Any, text: str, sentence: str) -> None:
    with pytest.raises(ScenarioError, match=sentence) as caught:
        looked_at(Trace(file=written(tmp_path, "wrong", text), format=form))
    assert "\n" not in str(caught.value)


def test_a_scenario_with_a_trace_predicts_what_it_will_send(mooncake: dict[str, Any]) -> None:
    scenario = a_scenario({}, trace=mooncake)
    assert scenario.workload.longest_tokens == 1025
    assert scenario.workload.input_tokens.at(0.5) == 700
    again = parse_scenario(json.loads(json.dumps(scenario_body(scenario))))
    assert again == scenario
    assert again.workload == scenario.workload


LINES: list[dict[str, Any]] = [{"prompt": f"question {n} of many", "output_tokens": n + 1} for n in range(9)]
TALKS: list[Any] = [
    {"conversations": [{"from": "human", "value": f"ask {n}"}, {"from": "gpt", "value": "yes " * (n + 1)}]}
    for n in range(9)
]


def a_dataset(folder: Path, form: str, rows: list[Any], **changes: Any) -> dict[str, Any]:
    text = json.dumps(rows, indent=1) if form == "sharegpt" else json_lines(rows)
    return {"file": written(folder, f"rows.{form}", text), "format": form, **changes}


def test_every_row_is_sent_as_often_behind_words_that_no_other_request_has(tmp_path: Path) -> None:
    asker = an_asker(a_scenario({}, dataset=a_dataset(tmp_path, "jsonl", LINES)))
    prompts = [asker.first(seq).body["prompt"] for seq in range(27)]
    marks, rows = zip(*(prompt.split("\n\n", 1) for prompt in prompts), strict=True)
    assert set(Counter(rows).values()) == {3}
    assert set(rows) == {row["prompt"] for row in LINES}
    assert len(set(marks)) == 27
    assert set(joined(CHAT.words).split()) >= set(" ".join(marks).split())


def test_a_row_can_be_sent_just_as_it_was_recorded(tmp_path: Path) -> None:
    dataset = a_dataset(tmp_path, "sharegpt", TALKS, unique=False)
    asker = an_asker(a_scenario({}, dataset=dataset, endpoint="chat"))
    sent = {asker.first(seq).body["messages"][0]["content"] for seq in range(9)}
    assert sent == {f"ask {n}" for n in range(9)}


def test_messages_are_sent_whole_with_the_mark_in_the_first(tmp_path: Path) -> None:
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    dataset = a_dataset(tmp_path, "jsonl", [{"messages": messages, "max_tokens": 4}])
    sent = an_asker(a_scenario({}, dataset=dataset, endpoint="chat")).first(0).body["messages"]
    assert sent[1:] == messages[1:]
    assert sent[0]["content"].endswith("\n\na")


def test_answers_are_as_long_as_recorded_or_as_the_scenario_says(tmp_path: Path) -> None:
    dataset = a_dataset(tmp_path, "jsonl", LINES)
    as_recorded = a_scenario({}, dataset=dataset).workload.output_tokens
    assert (as_recorded.shortest, as_recorded.longest) == (1, 9)
    assert a_scenario({"output_tokens": 50}, dataset=dataset).workload.output_tokens.shortest == 50
    without = a_dataset(tmp_path, "jsonl", [{"prompt": "x"}])
    with pytest.raises(ScenarioError, match="row 0 has no output_tokens: add them or give output_tokens"):
        a_scenario({}, dataset=without)


def test_which_rows_are_taken_follows_from_the_seed(tmp_path: Path) -> None:
    dataset = a_dataset(tmp_path, "sharegpt", TALKS * 40, rows_max=20)

    def taken(seed: int) -> list[int]:
        found = a_scenario({}, dataset=dataset, seed=seed).dataset
        assert found is not None
        return [one.row for one in found.counted]

    assert len(taken(1)) == 20
    assert taken(1) == taken(1)
    assert taken(1) != taken(2)
    assert max(max(taken(seed)) for seed in range(5)) > 300  # from the whole file, not its beginning


def test_conversations_that_no_person_opens_or_nobody_answers_are_passed_over(tmp_path: Path) -> None:
    rows = [
        {"conversations": [{"from": "gpt", "value": "x"}, {"from": "human", "value": "y"}]},
        {"conversations": [{"from": "human", "value": "x"}]},
        {"other": 1},
        3,
        *TALKS[:1],
    ]
    found = a_scenario({}, dataset=a_dataset(tmp_path, "sharegpt", rows)).dataset
    assert found is not None
    assert [one.row for one in found.counted] == [0]


@pytest.mark.parametrize(
    ("form", "text", "sentence"),
    [
        ("jsonl", "{\n", "row 0 is not JSON"),
        ("jsonl", "[1]\n", "row 0 is no JSON object"),
        ("jsonl", '{"prompt": "x", "messages": []}', "either `prompt`, a text, or `messages`"),
        ("jsonl", '{"messages": [{"role": "user"}]}', "either `prompt`, a text, or `messages`"),
        ("jsonl", '{"prompt": "x", "output_tokens": 0}', "output_tokens must be a whole number above 0"),
        ("jsonl", '{"prompt": "' + "x" * 10_000_001, "line of more than 10 MB"),
        ("jsonl", "", "has no"),
        ("sharegpt", "{}", r"does not begin with \["),
        ("sharegpt", "[{]", "is not JSON"),
        ("sharegpt", '[{"a": 1}', "is not JSON"),
        ("sharegpt", "[]", "has no conversation"),
    ],
)
def test_a_wrong_dataset_is_refused_by_its_row(tmp_path: Path, form: str, text: str, sentence: str) -> None:
    file = written(tmp_path, "wrong", text)
    with pytest.raises(ScenarioError, match=sentence):
        a_scenario({"output_tokens": 4}, dataset={"file": file, "format": form})
    with pytest.raises(ScenarioError, match="cannot read"):
        a_scenario({"output_tokens": 4}, dataset={"file": str(tmp_path / "none"), "format": form})


def test_rows_that_are_too_long_are_refused_with_the_count_or_left_out(tmp_path: Path) -> None:
    dataset = a_scenario({}, dataset=a_dataset(tmp_path, "jsonl", LINES)).dataset
    assert dataset is not None
    lengths = sorted(one.input_tokens + one.output_tokens for one in dataset.counted)
    with pytest.raises(ScenarioError, match=r"[1-9] of 9 rows of .*skip_long: true"):
        dataset.fitted(lengths[4])
    skipping = a_scenario({}, dataset=a_dataset(tmp_path, "jsonl", LINES, skip_long=True)).dataset
    assert skipping is not None
    assert len(skipping.fitted(lengths[4]).counted) == sum(length <= lengths[4] for length in lengths)
    with pytest.raises(ScenarioError, match="no row of"):
        skipping.fitted(1)


def test_a_file_that_is_not_the_one_that_was_counted_is_refused(tmp_path: Path) -> None:
    scenario = a_scenario({}, dataset=a_dataset(tmp_path, "jsonl", LINES))
    a_dataset(tmp_path, "jsonl", LINES[:4])
    with pytest.raises(ScenarioError, match="is not the file that was counted"):
        an_asker(scenario)
