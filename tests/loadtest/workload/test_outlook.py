"""What a scenario will send is told before it is sent, and it is what is sent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from workloads import CHAT, LENGTHS, a_scenario, an_asker, conversation

from loadtest.workload.outlook import outlook, shortened, spread


def test_the_quantiles_are_those_of_what_is_sent() -> None:
    scenario = a_scenario()
    asker = an_asker(scenario)
    sent = sorted(asker.first(seq).input_tokens for seq in range(4000))
    told = outlook(scenario).input_tokens
    assert told.mean == pytest.approx(sum(sent) / len(sent), rel=0.02)
    assert told.p50 == pytest.approx(sent[2000], rel=0.05)
    assert told.p95 == pytest.approx(sent[3800], rel=0.05)
    assert told.longest == 300


def test_a_conversations_turns_and_what_they_repeat_are_those_that_are_sent() -> None:
    scenario = a_scenario(endpoint="chat", session={"turns": {"kind": "uniform", "min": 2, "max": 6}})
    asker = an_asker(scenario)
    talks = [list(conversation(asker, seq)) for seq in range(400)]
    asks = [ask for talk in talks for ask in talk]
    told = outlook(scenario, CHAT)
    assert told.turns_mean == len(asks) / 400
    assert told.input_tokens.mean == pytest.approx(
        sum(ask.input_tokens for ask in asks) / len(asks), rel=0.05
    )
    said = sum(before.input_tokens + before.output_tokens for talk in talks for before in talk[:-1])
    assert told.repeated_ratio == pytest.approx(said / sum(ask.input_tokens for ask in asks))


def test_an_open_loops_stages_have_totals_and_a_closed_loops_have_not() -> None:
    stages = [{"users": 10, "rate_per_s": 3.0, "hold_s": 20}]
    stage = outlook(
        a_scenario({"input_tokens": 100, "output_tokens": 20}, arrivals={"kind": "poisson"}, stages=stages)
    ).stages[0]
    assert (stage.requests, stage.input_tokens, stage.output_tokens) == (60, 6000, 1200)
    assert stage.in_flight_tokens_max == 1200
    closed = outlook(a_scenario()).stages[0]
    assert (closed.requests, closed.input_tokens) == (None, None)
    share = outlook(a_scenario(stages=[{"of": "slots", "ratio": 0.5, "hold_s": 9}])).stages[0]
    assert (share.users, share.in_flight_tokens_max) == ("50% of slots", None)


def test_what_prompts_share_is_told_as_a_share_of_their_tokens() -> None:
    assert outlook(a_scenario()).repeated_ratio == 0
    assert outlook(a_scenario(shared_prefix={"share": 0.25})).repeated_ratio == pytest.approx(0.25, abs=0.01)
    constant = a_scenario({**LENGTHS, "input_tokens": 200}, shared_prefix={"tokens": 50})
    assert outlook(constant).repeated_ratio == pytest.approx(0.25)


def test_a_traces_requests_and_repeated_blocks_are_counted(tmp_path: Path) -> None:
    rows = [
        {"timestamp": 1000 * n, "input_length": 1024, "output_length": 1, "hash_ids": [0, n + 1]}
        for n in range(30)
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    trace = {"file": str(tmp_path / "t.jsonl"), "format": "mooncake", "speed": 2.0}
    told = outlook(
        a_scenario({}, trace=trace, arrivals={"kind": "trace"}, stages=[{"users": 5, "hold_s": 10}])
    )
    assert told.repeated_ratio == pytest.approx(29 * 512 / (30 * 1024))
    assert told.stages[0].requests == 20


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("x" * 100, "x" * 48 + "… 52 more characters"),
        (list(range(9)), [0, 1, 2, 3, 4, 5, "… 3 more"]),
        ({"a": ["x" * 70]}, {"a": ["x" * 48 + "… 22 more characters"]}),
        (True, True),
    ],
)
def test_a_body_is_shortened_to_what_a_person_reads(value: Any, shown: Any) -> None:
    assert shortened(value) == shown


def test_a_spread_of_a_constant_is_that_constant() -> None:
    lengths = a_scenario({"input_tokens": 77, "output_tokens": 1}).input_tokens
    assert lengths is not None
    assert spread(lengths) == spread(lengths)
    assert (spread(lengths).mean, spread(lengths).p50, spread(lengths).longest) == (77, 77, 77)
