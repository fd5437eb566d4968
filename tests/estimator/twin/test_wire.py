"""The twin's bytes against those of a real vLLM 0.32: same events, same keys, same order."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from estimator.twin.ask import Ask
from estimator.twin.speech import Speech
from estimator.twin.tokens import text_of
from estimator.twin.wire import Envelope, StreamWire

STREAMS = Path(__file__).resolve().parents[2] / "fixtures/streams"


def recorded(name: str) -> list[bytes]:
    """The events of a recorded answer, its HTTP chunks undone."""
    body = (STREAMS / f"vllm-0.32-{name}.http").read_bytes().split(b"\r\n\r\n", 1)[1]
    joined = b""
    while body:
        size, body = body.split(b"\r\n", 1)
        joined += body[: int(size, 16)]
        body = body[int(size, 16) + 2 :]
    return [event + b"\n\n" for event in joined.split(b"\n\n") if event]


def shape(event: bytes) -> Any:
    """Keys in order and the values that do not depend on the text; ids, times and texts by type."""
    data = event.removeprefix(b"data: ").strip()
    return data if data == b"[DONE]" else _shape(json.loads(data))


def _shape(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return [(name, _shape(inner, name)) for name, inner in value.items()]
    if isinstance(value, list):
        return [_shape(inner) for inner in value]
    return type(value) if key in ("id", "created", "text", "content", "system_fingerprint") else value


ENVELOPE = Envelope(answer_id="cmpl-1", model="tiny", created_s=1)


def speech(ask: Ask, **changes: Any) -> Speech:
    whole = Speech(prompt_tokens=ask.prompts_tokens[0], output_tokens=ask.max_tokens, finish_reason="length")
    return replace(whole, **changes)


def spoken(ask: Ask, said: Speech, step: int = 1) -> list[bytes]:
    wire = StreamWire(ask, [said], ENVELOPE)
    count = said.output_tokens
    pieces = [wire.role()]
    pieces += [wire.tokens(0, first, min(step, count - first)) for first in range(0, count, step)]
    pieces.append(wire.end([count], [0]))
    return [event + b"\n\n" for event in b"".join(pieces).split(b"\n\n") if event]


def deltas(events: list[bytes]) -> list[Any]:
    """The choices of the events but the end mark."""
    bodies = [json.loads(event.removeprefix(b"data: ")) for event in events[:-1]]
    return [choice for body in bodies for choice in body["choices"]]


@pytest.mark.parametrize(
    ("name", "chat", "prompt_tokens", "output_tokens", "continuous"),
    [
        ("completions", False, 4, 8, False),
        ("chat", True, 16, 8, False),
        ("chat-usage-every-chunk", True, 16, 4, True),
    ],
)
def test_a_stream_has_the_events_and_keys_of_a_recorded_vllm(
    name: str, chat: bool, prompt_tokens: int, output_tokens: int, continuous: bool
) -> None:
    ask = Ask(
        chat=chat,
        prompts_tokens=(prompt_tokens,),
        max_tokens=output_tokens,
        stream=True,
        include_usage=True,
        continuous_usage=continuous,
    )
    assert [shape(event) for event in spoken(ask, speech(ask))] == [shape(event) for event in recorded(name)]


PLAIN = Ask(chat=False, prompts_tokens=(1,), max_tokens=1, stream=True)
CHAT = Ask(chat=True, prompts_tokens=(1,), max_tokens=200, stream=True)


def test_without_include_usage_the_stream_ends_without_a_usage_chunk() -> None:
    assert StreamWire(PLAIN, [speech(PLAIN)], ENVELOPE).end([1], [0]) == b"data: [DONE]\n\n"


def test_an_odd_model_name_is_still_one_json_event() -> None:
    odd = replace(ENVELOPE, model='q"\\\n\x00é')
    event = StreamWire(PLAIN, [speech(PLAIN)], odd).tokens(0, 0, 1)
    assert event.endswith(b"\n\n")
    assert json.loads(event.removeprefix(b"data: "))["model"] == 'q"\\\n\x00é'
    assert event.count(b"\n") == 2


def test_the_short_way_writes_what_the_long_way_writes() -> None:
    wire = StreamWire(CHAT, [speech(CHAT)], ENVELOPE)
    words = wire.words(0)
    for first in range(1, 25):
        assert words[first % len(words)] == wire.tokens(0, first, 1)


@pytest.mark.parametrize("step", [1, 7, 64, 200])
def test_thinking_comes_first_and_no_token_is_lost_between_the_two(step: int) -> None:
    ask = replace(CHAT, reasoning=True)
    choices = deltas(spoken(ask, speech(ask, reasoning_tokens=64), step))
    thought = "".join(choice["delta"].get("reasoning", "") for choice in choices)
    content = "".join(choice["delta"].get("content", "") for choice in choices)
    assert thought + content == text_of(0, 200)
    assert len(thought.split()) == 64
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["length"]


@pytest.mark.parametrize("output_tokens", [1, 2, 3, 4, 16])
def test_a_tool_call_that_ends_by_itself_carries_json_whatever_the_chunks(output_tokens: int) -> None:
    for step in (1, 2, 5, 16):
        said = speech(CHAT, output_tokens=output_tokens, finish_reason="stop", tool="fill", eos=True)
        choices = deltas(spoken(CHAT, said, step))
        calls = [call for one in choices for call in one["delta"].get("tool_calls", [])]
        assert calls[0]["function"] == {"name": "fill"}
        assert isinstance(json.loads("".join(call["function"].get("arguments", "") for call in calls)), dict)
        assert choices[-1]["delta"] == {}


def test_the_end_mark_counts_and_says_nothing() -> None:
    said = speech(CHAT, output_tokens=4, finish_reason="stop", eos=True)
    choices = deltas(spoken(CHAT, said))
    assert [choice["delta"].get("content") for choice in choices] == ["", " the", " tank", " is", ""]


def test_a_token_is_a_word() -> None:
    assert len(text_of(3, 17).split()) == 17
    assert text_of(0, 5) + text_of(5, 4) == text_of(0, 9)
