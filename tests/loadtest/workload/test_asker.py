"""What one load process asks: exact, unique, the same again for the same seed, and as the scenario says."""

from __future__ import annotations

import base64
import struct
import zlib
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from workloads import CHAT, LENGTHS, a_scenario, an_asker, as_bytes, conversation, counted, text_of

from loadtest.scenario import ScenarioError
from loadtest.workload.asker import check_room
from loadtest.workload.prompts import TOKEN_IDS

SESSION: dict[str, Any] = {"turns": {"kind": "uniform", "min": 2, "max": 5}, "think_s": {"mean_s": 2.0}}
SHAPES: list[dict[str, Any]] = [
    {},
    {"endpoint": "chat"},
    {"endpoint": "chat", "session": SESSION},
    {"shared_prefix": {"share": 0.5, "groups": 3}},
    {"endpoint": "chat", "shared_prefix": {"tokens": 20}},
    {"models": [{"name": "a"}, {"name": "b"}]},
]
BLOCK_TOKENS = 16


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(SHAPES), st.integers(0, 99), st.integers(0, 7), st.integers(0, 500))
def test_the_same_seed_gives_the_same_bytes_and_another_gives_others(
    shape: dict[str, Any], seed: int, worker: int, seq: int
) -> None:
    def asked(seed: int) -> list[bytes]:
        asker = an_asker(a_scenario(seed=seed, **shape), worker=worker, workers=8)
        return [as_bytes(ask) for ask in conversation(asker, seq)]

    assert asked(seed) == asked(seed)
    assert asked(seed) != asked(seed + 1)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(SHAPES), st.integers(0, 99), st.integers(0, 500))
def test_every_prompt_has_exactly_the_planned_tokens(shape: dict[str, Any], seed: int, seq: int) -> None:
    asker = an_asker(a_scenario(seed=seed, **shape))
    for ask in conversation(asker, seq):
        later = sum(message["role"] == "assistant" for message in ask.body.get("messages", ()))
        # an answer's true length is the server's to know: it counts as planned, and here has one word
        planned = ask.input_tokens - sum(
            one.output_tokens for one in conversation(asker, seq) if one.turn < ask.turn
        )
        assert counted(ask) == planned + later


def test_no_two_prompts_of_any_worker_or_run_share_their_first_block() -> None:
    scenario = a_scenario()
    firsts = [
        tuple(
            an_asker(scenario, run_id=run_id, worker=worker, workers=4)
            .first(seq)
            .body["prompt"][:BLOCK_TOKENS]
        )
        for run_id in ("r", "another run")
        for worker in range(4)
        for seq in range(200)
    ]
    assert len(set(firsts)) == len(firsts)


def test_requests_that_follow_each_other_differ_in_the_very_first_token() -> None:
    asker = an_asker(a_scenario())
    firsts = [asker.first(seq).body["prompt"][0] for seq in range(300)]
    assert len(set(firsts)) == len(firsts)


def test_lengths_follow_the_scenario() -> None:
    asker = an_asker(a_scenario())
    asks = [asker.first(seq) for seq in range(2000)]
    inputs, outputs = [ask.input_tokens for ask in asks], sorted(ask.output_tokens for ask in asks)
    assert (min(inputs), max(inputs)) == (40, 300)
    assert sum(inputs) / len(inputs) == pytest.approx(170, rel=0.05)
    assert outputs[1000] == pytest.approx(40, rel=0.1)
    assert (outputs[0], outputs[-1]) == (4, 200)


def test_a_group_shares_its_part_of_each_prompt_and_not_a_token_more() -> None:
    asker = an_asker(a_scenario(shared_prefix={"share": 0.5, "groups": 3}))
    asks = [asker.first(seq) for seq in range(120)]
    groups: dict[int, list[list[int]]] = {}
    for ask in asks:
        groups.setdefault(ask.body["prompt"][0], []).append(ask.body["prompt"])
    assert len(groups) == 3
    for prompts in groups.values():
        one, *others = prompts
        for other in others:
            shared = round(0.5 * min(len(one), len(other)))
            assert one[:shared] == other[:shared]
            assert one[shared : shared + 4] != other[shared : shared + 4]


def test_a_later_turn_repeats_the_conversation_with_the_servers_real_answer() -> None:
    asker = an_asker(a_scenario(endpoint="chat", session=SESSION))
    assert asker.keeps_text
    first, second, *_ = conversation(asker, 3, "the answer itself")
    assert second.body["messages"][:1] == first.body["messages"]
    assert second.body["messages"][1] == {"role": "assistant", "content": "the answer itself"}
    assert second.body["messages"][2]["role"] == "user"
    assert (first.session, first.turn, second.session, second.turn) == (3, 0, 3, 1)
    assert second.input_tokens > first.input_tokens + first.output_tokens
    assert (first.think_s, second.think_s > 0) == (0.0, True)


def test_who_else_asks_meanwhile_changes_nothing_in_a_conversation() -> None:
    asker = an_asker(a_scenario(endpoint="chat", session=SESSION))
    first = asker.first(3)
    early, late = asker.following(first, 4, "x"), asker.following(first, 400, "x")
    assert early is not None
    assert late is not None
    assert as_bytes(early) == as_bytes(late)


def test_conversations_have_the_turns_and_the_room_they_were_given() -> None:
    turns = {
        len(list(conversation(an_asker(a_scenario(endpoint="chat", session=SESSION)), n))) for n in range(80)
    }
    assert turns == {2, 3, 4, 5}
    narrow = a_scenario(endpoint="chat", session={"turns": 50, "context_tokens_max": 900})
    for seq in range(20):
        asks = list(conversation(an_asker(narrow), seq))
        assert max(ask.input_tokens + ask.output_tokens for ask in asks) <= 900
        assert 1 < len(asks) < 50


def test_requests_that_stand_alone_have_nothing_that_follows() -> None:
    asker = an_asker(a_scenario())
    assert not asker.keeps_text
    assert asker.following(asker.first(0), 1, "x") is None


def test_models_are_asked_by_their_shares_and_a_conversation_stays_with_one() -> None:
    models = [{"name": "base", "share": 3}, {"name": "adapter"}]
    asker = an_asker(a_scenario(endpoint="chat", session=SESSION, models=models))
    asked = Counter(asker.first(seq).model for seq in range(1000))
    assert asked["base"] / 1000 == pytest.approx(0.75, abs=0.05)
    for seq in range(20):
        assert len({(ask.model, ask.body["model"]) for ask in conversation(asker, seq)}) == 1


def test_what_a_person_adds_goes_with_every_request() -> None:
    tools = [{"type": "function", "function": {"name": "search"}}]
    ask = an_asker(
        a_scenario(
            endpoint="chat", system="be kind", tools=tools, extra_body={"top_p": 0.9, "temperature": 0.5}
        )
    ).first(0)
    assert ask.body["messages"][0] == {"role": "system", "content": "be kind"}
    assert (ask.body["tools"], ask.body["top_p"], ask.body["temperature"]) == (tools, 0.9, 0.5)
    assert "ignore_eos" not in ask.body  # a call ends by itself
    schema = {"type": "json_object"}
    body = an_asker(a_scenario(response_format=schema)).first(0).body
    assert body["response_format"] == schema
    assert "ignore_eos" not in body


@pytest.mark.parametrize(
    ("said", "asked"),
    [
        ({}, True),
        ({"ignore_eos": False}, None),
        ({"extra_body": {"ignore_eos": False}}, False),
        ({"ignore_eos": False, "extra_body": {"ignore_eos": True}}, True),
        ({"response_format": {"type": "json_object"}, "extra_body": {"ignore_eos": True}}, True),
    ],
)
def test_a_server_that_knows_no_ignore_eos_is_not_told_of_it(
    said: dict[str, Any], asked: bool | None
) -> None:
    scenario = a_scenario(**said)
    assert an_asker(scenario).first(0).body.get("ignore_eos") is asked
    assert scenario.ignores_eos is bool(asked)


def test_an_image_is_a_png_that_no_other_request_has() -> None:
    images = {"count": 2, "width": 50, "height": 21, "tokens_each": 15}
    asker = an_asker(a_scenario(endpoint="chat", images=images))
    urls = []
    for seq in range(3):
        ask = asker.first(seq)
        parts = ask.body["messages"][0]["content"]
        assert counted(ask) == ask.input_tokens - 2 * 15
        urls += [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    assert len(set(urls)) == 6
    for url in urls:
        assert pixels(base64.b64decode(url.removeprefix("data:image/png;base64,"))) == (50, 21)


def pixels(png: bytes) -> tuple[int, int]:
    """Width and height, once every chunk's checksum and the number of bytes have been found right."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        kind, data = png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        assert struct.unpack(">I", png[at + 8 + length : at + 12 + length]) == (zlib.crc32(kind + data),)
        chunks[kind], at = data, at + 12 + length
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    width, height = struct.unpack(">II", chunks[b"IHDR"][:8])
    rows = zlib.decompress(chunks[b"IDAT"])
    assert len(rows) == height * (1 + 3 * width)
    assert not any(rows[:: 1 + 3 * width])  # each row begins with its filter, and that is none
    return width, height


@pytest.mark.parametrize(
    ("changes", "needed"),
    [
        ({}, 4),
        ({"endpoint": "chat"}, 9 + 7),
        ({"shared_prefix": {"tokens": 100}}, 104),
        ({"endpoint": "chat", "images": {"width": 8, "height": 8, "tokens_each": 50}}, 9 + 7 + 50),
    ],
)
def test_prompts_without_room_for_what_makes_them_unique_are_refused(
    changes: dict[str, Any], needed: int
) -> None:
    def check(tokens: int) -> None:
        scenario = a_scenario({**LENGTHS, "input_tokens": tokens}, **changes)
        check_room(scenario, CHAT if scenario.endpoint == "chat" else None)

    check(needed)
    with pytest.raises(ScenarioError, match=f"takes at least {needed} tokens here"):
        check(needed - 1)


def test_ids_are_those_that_every_vocabulary_has() -> None:
    for shape in ({}, {"shared_prefix": {"share": 0.5}}):
        assert set(an_asker(a_scenario(**shape)).first(0).body["prompt"]) <= set(TOKEN_IDS)


def test_words_are_joined_so_that_each_begins_with_its_space() -> None:
    content = an_asker(a_scenario(endpoint="chat")).first(0).body["messages"][0]["content"]
    assert set(text_of(content).split(" ")[1:]) <= set(CHAT.words)
