"""Prompts: exact, unique from the first token on, and the same again for the same seed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest

from estimator.spec import Lengths
from loadtest.scenario import Scenario, ScenarioError, Stage
from loadtest.workers.prompts import (
    TOKEN_IDS,
    ChatWords,
    Messages,
    calibrate,
    chat_prompt,
    draw,
    nonce,
    request_body,
    token_prompt,
)

SCENARIO = Scenario(
    name="p",
    seed=5,
    input_tokens=Lengths(kind="uniform", min=20, max=300),
    output_tokens=Lengths(kind="lognormal", median=40.0, sigma=0.7, min=4, max=200),
    stages=(Stage(users=1, hold_s=9.0),),
)


def prompts(run_id: str = "r", worker: int = 0, count: int = 300) -> list[list[int]]:
    return [token_prompt(draw(SCENARIO, worker, seq), run_id, worker, seq) for seq in range(count)]


def test_a_prompt_has_exactly_the_drawn_length_and_safe_ids() -> None:
    for seq, prompt in enumerate(prompts()):
        assert len(prompt) == draw(SCENARIO, 0, seq).input_tokens
        assert set(prompt) <= set(TOKEN_IDS)


def test_no_two_prompts_share_their_first_block() -> None:
    everything = prompts() + prompts(worker=1) + prompts(run_id="another run")
    firsts = {tuple(prompt[:16]) for prompt in everything}
    assert len(firsts) == len(everything)


def test_requests_that_follow_each_other_differ_in_the_very_first_token() -> None:
    firsts = [prompt[0] for prompt in prompts()]
    assert len(set(firsts)) == len(firsts)


def test_the_same_seed_gives_the_same_prompts_and_another_run_gives_others() -> None:
    assert prompts() == prompts()
    assert prompts() != prompts(run_id="another run")


def test_lengths_follow_the_scenario() -> None:
    drawn = [draw(SCENARIO, 0, seq) for seq in range(2000)]
    inputs = [d.input_tokens for d in drawn]
    outputs = sorted(d.output_tokens for d in drawn)
    assert (min(inputs), max(inputs)) == (20, 300)
    assert sum(inputs) / len(inputs) == pytest.approx(160, rel=0.05)
    assert outputs[1000] == pytest.approx(40, rel=0.1)
    assert (outputs[0], outputs[-1]) == (4, 200)


def test_a_nonce_is_unique_over_workers_and_sequence() -> None:
    seen = {tuple(nonce("r", worker, seq, 97)) for worker, seq in itertools.product(range(40), range(200))}
    assert len(seen) == 40 * 200


def tokens_of(messages: Messages, *, split: Sequence[str] = (), overhead: int = 9) -> int:
    """A tokenizer of words; those in `split` are two tokens."""
    words = messages[0]["content"].split()
    return overhead + sum(2 if word in split else 1 for word in words)


def test_calibration_finds_the_templates_overhead_and_leaves_words_that_split() -> None:
    chat = calibrate(lambda messages: tokens_of(messages, split=("water", "system")))
    assert chat.overhead_tokens == 9
    assert not {"water", "system"} & set(chat.words)
    assert len(chat.words) > 100


def test_calibration_is_not_misled_when_its_first_word_splits() -> None:
    with pytest.raises(ScenarioError, match="use endpoint: completions"):
        calibrate(lambda messages: tokens_of(messages) ** 2)


def test_a_chat_prompt_counts_to_the_drawn_length_with_the_template() -> None:
    chat = calibrate(tokens_of)
    seen = set()
    for seq in range(200):
        drawn = draw(SCENARIO, 0, seq)
        messages = chat_prompt(drawn, chat, "r", 0, seq)
        assert tokens_of(messages) == drawn.input_tokens
        seen.add(messages[0]["content"][:60])
    assert len(seen) == 200


def test_ids_go_to_completions_and_messages_to_chat() -> None:
    chat = ChatWords(words=tuple("abcdefghijklmnopqrst"), overhead_tokens=2)
    drawn = draw(SCENARIO, 0, 0)
    assert "prompt" in request_body("m", token_prompt(drawn, "r", 0, 0), 5)
    body = request_body("m", chat_prompt(drawn, chat, "r", 0, 0), 5)
    assert "messages" in body
    assert (body["max_tokens"], body["ignore_eos"], body["stream_options"]) == (
        5,
        True,
        {"include_usage": True},
    )
