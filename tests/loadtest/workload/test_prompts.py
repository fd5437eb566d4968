"""Prompts: exact, unique from the first token on, and spelled in words that the server counts as one."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.scenario import ScenarioError
from loadtest.workload.prompts import (
    TOKEN_IDS,
    Draw,
    Messages,
    calibrate,
    chat_prompt,
    joined,
    nonce,
    request_body,
    spelled,
    token_prompt,
    turn_tokens,
)


def a_draw(tokens: int, seed: int = 0) -> Draw:
    return Draw(input_tokens=tokens, output_tokens=5, rng=random.Random(seed))


@given(st.integers(3, 400), st.integers(0, 10**9), st.integers(0, 1008))
def test_a_prompt_has_exactly_the_drawn_length_and_safe_ids(tokens: int, seq: int, worker: int) -> None:
    prompt = token_prompt(a_draw(tokens), "r", worker, seq)
    assert len(prompt) == tokens
    assert set(prompt) <= set(TOKEN_IDS)


def test_a_nonce_is_unique_over_workers_and_sequence() -> None:
    seen = {tuple(nonce("r", worker, seq, 97)) for worker, seq in itertools.product(range(40), range(200))}
    assert len(seen) == 40 * 200


@given(st.integers(0, 200), st.integers(1, 200))
def test_what_is_shared_gives_way_where_there_is_no_room_for_the_mark(shared: int, count: int) -> None:
    mark = [3, 1, 2]
    text = spelled(TOKEN_IDS, count, mark, random.Random(1), [150] * shared)
    assert len(text) == count
    if count >= len(mark):
        front = min(shared, count - len(mark))
        assert text[: front + 3] == [150] * front + [TOKEN_IDS[digit] for digit in mark]


def tokens_of(prompt: str | Messages, *, split: Sequence[str] = (), overhead: int = 9) -> int:
    """A tokenizer of words; those in `split` are two tokens. A message adds 4 to its words, a chat 5."""
    if isinstance(prompt, str):
        return overhead + sum(2 if word in split else 1 for word in prompt.split())
    words = [word for message in prompt for word in message["content"].split()]
    return overhead - 4 + 4 * len(prompt) + sum(2 if word in split else 1 for word in words)


def test_calibration_finds_the_templates_overhead_and_leaves_words_that_split() -> None:
    chat = calibrate(lambda prompt: tokens_of(prompt, split=("water", "system")))
    assert chat.overhead_tokens == 9
    assert not {"water", "system"} & set(chat.words)
    assert len(chat.words) > 100


def test_calibration_is_not_misled_when_its_first_word_splits() -> None:
    with pytest.raises(ScenarioError, match="use endpoint: completions"):
        calibrate(lambda prompt: tokens_of(prompt) ** 2)


def test_calibration_counts_what_stands_around_the_words() -> None:
    def wrap(words: Sequence[str]) -> Messages:
        return [
            {"role": "system", "content": "be kind"},
            {"role": "user", "content": joined(words)},
        ]

    assert calibrate(tokens_of, wrap).overhead_tokens == 9 + 4 + 2
    assert calibrate(tokens_of, joined).overhead_tokens == 9


def test_a_further_turn_adds_the_template_of_two_messages() -> None:
    chat = calibrate(tokens_of)
    assert turn_tokens(tokens_of, chat, [{"role": "user", "content": " time"}]) == 8


def test_a_chat_prompt_counts_to_the_drawn_length_with_the_template() -> None:
    chat = calibrate(tokens_of)
    seen = set()
    for seq in range(200):
        messages = chat_prompt(a_draw(20 + seq), chat, "r", 0, seq)
        assert tokens_of(messages) == 20 + seq
        seen.add(messages[0]["content"][:60])
    assert len(seen) == 200


@pytest.mark.parametrize(
    ("prompt", "key"),
    [([101, 102], "prompt"), ("some text", "prompt"), ([{"role": "user", "content": "x"}], "messages")],
)
def test_ids_and_texts_go_to_completions_and_messages_to_chat(prompt: Any, key: str) -> None:
    body = request_body("m", prompt, 5)
    assert body[key] == prompt
    assert (body["max_tokens"], body["ignore_eos"], body["stream"]) == (5, True, True)
    assert body["stream_options"] == {"include_usage": True}
