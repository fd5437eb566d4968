"""What vLLM refuses, the twin refuses, with the same body; every message here was recorded from vLLM 0.32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from estimator.twin.ask import Rules, parse_ask, parse_detokenize, parse_tokenize
from estimator.twin.refusals import AskError, bad_json

UNKNOWN = Path(__file__).resolve().parents[2] / "fixtures/streams/vllm-0.32-unknown-model.http"


def ask(body: Any, *, chat: bool = False) -> Any:
    return parse_ask(body, chat=chat, rules=Rules(model="tiny", max_model_len=2048))


def refusal(body: Any, *, chat: bool = False) -> AskError:
    with pytest.raises(AskError) as raised:
        ask(body, chat=chat)
    return raised.value


def test_an_unknown_model_gets_the_recorded_body() -> None:
    recorded = json.loads(UNKNOWN.read_bytes().split(b"\r\n\r\n", 1)[1])
    error = refusal({"model": "nope", "prompt": [5], "max_tokens": 8})
    assert error.status == 404
    assert error.body() == recorded


RECORDED = [
    (
        {"prompt": [1] * 2050, "max_tokens": 8},
        "This model's maximum context length is 2048 tokens. However, your prompt contains 2050 input "
        "tokens, which exceeds this limit even without any output tokens. Please reduce the length of the "
        "input prompt. (parameter=input_tokens, value=2050)",
        "input_tokens",
    ),
    (
        {"prompt": [5], "max_tokens": 3000},
        "max_tokens=3000 cannot be greater than max_model_len=2048. Please request fewer output tokens. "
        "(parameter=max_tokens, value=3000)",
        "max_tokens",
    ),
    (
        {"prompt": [1] * 2048, "max_tokens": 8},
        "max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)",
        "max_tokens",
    ),
    (
        {"prompt": [5], "max_tokens": -1},
        "max_tokens must be at least 1, got -1. (parameter=max_tokens, value=-1)",
        "max_tokens",
    ),
    (
        {"model": "tiny"},
        "Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)",
        "prompt",
    ),
    ({"prompt": []}, "You must pass at least one prompt", None),
]


@pytest.mark.parametrize(("body", "message", "param"), RECORDED)
def test_a_bad_completion_gets_vllms_sentence(body: Any, message: str, param: str | None) -> None:
    assert refusal(body).body() == {
        "error": {"message": message, "type": "BadRequestError", "param": param, "code": 400}
    }


def test_bad_json_gets_vllms_body() -> None:
    error = bad_json(1, "Expecting property name enclosed in double quotes").body()["error"]
    assert error == {
        "message": "1 validation error:\n  {'type': 'json_invalid', 'loc': 'body.1', 'msg': 'JSON decode "
        "error', 'input': '<dict of 0 items>', 'ctx': {'error': 'Expecting property name enclosed in double "
        "quotes'}}",
        "type": "Bad Request",
        "param": "body.1",
        "code": 400,
    }


@pytest.mark.parametrize(
    "body",
    [
        [1],
        "text",
        None,
        {"prompt": 5},
        {"prompt": {"a": 1}},
        {"prompt": [[5], "a", 3.5]},
        {"prompt": [5], "max_tokens": "x"},
        {"prompt": [5], "max_tokens": True},
        {"prompt": [5], "stream": True, "stream_options": [1]},
        {"prompt": [5], "temperature": "hot"},
        {"prompt": [5], "min_tokens": 17},
        {"prompt": [5], "n": 2},
        {"prompt": ["", "a"]},
    ],
)
def test_any_other_nonsense_is_a_400_and_never_a_crash(body: Any) -> None:
    assert refusal(body).status == 400


@pytest.mark.parametrize(
    "messages", [None, [], "hi", ["hi"], [{"content": 5}], [{"content": [{"type": "image_url"}]}]]
)
def test_a_chat_without_readable_messages_is_a_400(messages: Any) -> None:
    assert refusal({"messages": messages}, chat=True).status == 400


def test_tokens_are_ids_or_words_and_several_prompts_are_several_choices() -> None:
    assert ask({"prompt": "the tank  is\nfull"}).prompts_tokens == (4,)
    assert ask({"prompt": [3, 1, 2]}).prompts_tokens == (3,)
    assert ask({"prompt": ["a b", "c"]}).prompts_tokens == (2, 1)
    assert ask({"prompt": [[1, 2], [3]]}).prompts_tokens == (2, 1)


def test_tokenize_counts_what_a_completion_counts() -> None:
    messages = [{"role": "user", "content": "one two three"}, {"role": "user", "content": None}]
    chat = ask({"messages": messages}, chat=True).prompts_tokens
    assert chat == (len(parse_tokenize({"messages": messages}, model="tiny")[0]),)
    text = "one two  three"
    assert ask({"prompt": text}).prompts_tokens == (len(parse_tokenize({"prompt": text}, model="tiny")[0]),)


def test_a_chat_grows_by_one_token_a_word() -> None:
    def count(text: str) -> int:
        return ask({"messages": [{"role": "user", "content": text}]}, chat=True).prompts_tokens[0]

    assert count("a b c d e") - count("a b") == 3


def test_output_defaults_are_vllms_16_for_completions_and_the_context_for_chat() -> None:
    assert ask({"prompt": [1]}).max_tokens == 16
    chat = ask({"messages": [{"role": "user", "content": "hi"}]}, chat=True)
    assert chat.max_tokens == 2048 - chat.prompts_tokens[0]
    assert ask({"messages": [{"content": "hi"}], "max_completion_tokens": 3}, chat=True).max_tokens == 3


def test_an_output_beyond_the_context_is_cut_to_it() -> None:
    assert ask({"prompt": [1] * 2000, "max_tokens": 80}).max_tokens == 48


@pytest.mark.parametrize("tools", [5, ["fill"], [{"function": {}}], {"a": 1}])
def test_tools_of_an_odd_form_are_a_400(tools: Any) -> None:
    body = {"messages": [{"content": "hi"}], "tools": tools, "tool_choice": "required"}
    assert refusal(body, chat=True).status == 400


def test_what_cannot_be_detokenized_is_a_400() -> None:
    for body in ({"tokens": "a"}, {"tokens": [True]}, {"tokens": [1.5]}, [], {}):
        with pytest.raises(AskError):
            parse_detokenize(body, model="tiny")


def test_a_text_beyond_the_limit_is_not_counted_to_its_end() -> None:
    body = {"prompt": "tank " * 5000}
    assert "at least 2049 input tokens" in refusal(body).message
    assert "2050 input tokens" in refusal({"prompt": [1] * 2050}).message


def test_a_model_thinks_only_where_the_server_splits_it_off_and_the_request_lets_it() -> None:
    rules = Rules(model="tiny", max_model_len=2048, reasoning_parser="qwen3")
    body: dict[str, Any] = {"messages": [{"content": "hi"}]}
    assert ask(body, chat=True).reasoning is None
    assert parse_ask(body, chat=True, rules=rules).reasoning is True
    off = {**body, "chat_template_kwargs": {"enable_thinking": False}}
    assert parse_ask(off, chat=True, rules=rules).reasoning is False
