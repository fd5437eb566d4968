"""The twin's bytes against those of a real vLLM 0.32: same events, same keys, same order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from estimator.twin.ask import Ask
from estimator.twin.wire import StreamWire, text_of

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


def spoken(ask: Ask) -> list[bytes]:
    wire = StreamWire(ask, answer_id="cmpl-1", model="tiny", created_s=1)
    count = ask.output_tokens
    events = [wire.role()] if ask.chat else []
    events += [wire.tokens(0, text_of(n, 1), n + 1, last=n + 1 == count) for n in range(count)]
    return [event + b"\n\n" for event in b"".join([*events, wire.end([count])]).split(b"\n\n") if event]


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
        output_tokens=output_tokens,
        stream=True,
        include_usage=True,
        continuous_usage=continuous,
    )
    assert [shape(event) for event in spoken(ask)] == [shape(event) for event in recorded(name)]


def test_without_include_usage_the_stream_ends_without_a_usage_chunk() -> None:
    ask = Ask(
        chat=False,
        prompts_tokens=(1,),
        output_tokens=1,
        stream=True,
        include_usage=False,
        continuous_usage=False,
    )
    assert StreamWire(ask, answer_id="a", model="m", created_s=1).end([1]) == b"data: [DONE]\n\n"


def test_an_odd_model_name_is_still_one_json_event() -> None:
    ask = Ask(
        chat=False,
        prompts_tokens=(1,),
        output_tokens=1,
        stream=True,
        include_usage=False,
        continuous_usage=False,
    )
    wire = StreamWire(ask, answer_id="a", model='q"\\\n\x00é', created_s=1)
    event = wire.tokens(0, " the", 1, last=True)
    assert event.endswith(b"\n\n")
    assert json.loads(event.removeprefix(b"data: "))["model"] == 'q"\\\n\x00é'
    assert event.count(b"\n") == 2


def test_a_token_is_a_word() -> None:
    assert len(text_of(3, 17).split()) == 17
    assert text_of(0, 5) + text_of(5, 4) == text_of(0, 9)
