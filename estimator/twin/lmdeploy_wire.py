"""Speech -> the bytes LMDeploy 0.18 sends for it (lmdeploy/serve/openai/endpoints and chat_completions).

Its events hold JSON with spaces and no key that is null; the finish reason comes in an event of its own
after the last token, every delta names the role, and the end mark is not counted.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from estimator.twin.ask import Ask
from estimator.twin.speech import Speech
from estimator.twin.tokens import WORDS, text_of
from estimator.twin.wire import DONE, Envelope, compact_json

_FIELDS: Final = {"content": "content", "reasoning": "reasoning_content"}
_TEXT: Final = "\x00"
"""Stands for the text of a chunk while its frame is built; its last occurrence is the text."""


class StreamWire:
    """Encodes one streamed answer; several prompts share index 0, as in LMDeploy."""

    def __init__(self, ask: Ask, speeches: Sequence[Speech], envelope: Envelope) -> None:
        self._ask = ask
        self._speeches = speeches
        self._base = envelope.head("chat.completion.chunk" if ask.chat else "text_completion")
        self._frames = {part: self._frame(part) for part in _FIELDS}

    def role(self) -> bytes:
        """Nothing comes before the first token."""
        return b""

    def words(self, index: int) -> tuple[bytes, ...]:
        """The events of one token each, by token modulo their number; empty where they differ."""
        if self._speeches[index].reasoning_tokens:
            return ()
        before, after = self._frames["content"]
        return tuple(before + text_of(word, 1).encode() + after for word in range(len(WORDS)))

    def tokens(self, index: int, first: int, count: int) -> bytes:
        """The events for output tokens `first` .. of choice `index`, and after the last its finish reason."""
        speech = self._speeches[index]
        events = []
        for part, text in speech.pieces(first, count):
            before, after = self._frames[part]
            events.append(before + json.dumps(text)[1:-1].encode() + after)
        if first + count == speech.output_tokens:
            events.append(self._event(self._choice("content", "", speech.finish_reason)))
        return b"".join(events)

    def end(self, output_tokens: Sequence[int], _cached_tokens: Sequence[int]) -> bytes:
        """The usage event where asked for, and the end mark."""
        if not self._ask.include_usage:
            return DONE
        said = sum(output_tokens) - sum(speech.eos for speech in self._speeches)
        usage = _usage(self._ask, said)
        if not self._ask.chat:
            return (
                b"data: "
                + json.dumps({**self._base, "choices": [], "usage": usage}).encode()
                + b"\n\n"
                + DONE
            )
        details = {"prompt_tokens_details": {"cached_tokens": 0}, **_reasoning(self._ask, self._speeches)}
        whole = {**self._base, "choices": [], "usage": {**usage, **details}}
        return b"data: " + compact_json(whole) + b"\n\n" + DONE

    def _frame(self, part: str) -> tuple[bytes, bytes]:
        """An event cut where its text goes."""
        whole = self._event(self._choice(part, _TEXT, None))
        before, _, after = whole.rpartition(json.dumps(_TEXT)[1:-1].encode())
        return before, after

    def _choice(self, part: str, text: str, finish_reason: str | None) -> dict[str, Any]:
        said = {"delta": {"role": "assistant", _FIELDS[part]: text}} if self._ask.chat else {"text": text}
        return {"index": 0, **said, **({"finish_reason": finish_reason} if finish_reason else {})}

    def _event(self, choice: dict[str, Any]) -> bytes:
        usage = {"usage": None} if self._ask.include_usage else {}
        return b"data: " + json.dumps({**self._base, "choices": [choice], **usage}).encode() + b"\n\n"


def whole_answer(
    ask: Ask, speeches: Sequence[Speech], envelope: Envelope, _cached_tokens: Sequence[int]
) -> dict[str, Any]:
    """The body of an answer that is not streamed."""
    usage = _usage(ask, sum(speech.output_tokens - speech.eos for speech in speeches))
    if not ask.chat:
        choices = [
            {
                "index": index,
                "text": speech.part("content"),
                "logprobs": None,
                "finish_reason": speech.finish_reason,
            }
            for index, speech in enumerate(speeches)
        ]
        details: dict[str, Any] = {"prompt_tokens_details": None, "completion_tokens_details": None}
        return {**envelope.head("text_completion"), "choices": choices, "usage": {**usage, **details}}
    (speech,) = speeches
    message = {
        "role": "assistant",
        "content": speech.part("content") or None,
        "reasoning_content": speech.part("reasoning") or None,
        "tool_calls": None,
    }
    ends = {"finish_reason": speech.finish_reason, "output_ids": None, "routed_experts": None}
    choice = {"index": 0, "message": message, "logprobs": None, "output_token_logprobs": None, **ends}
    details = {"prompt_tokens_details": {"cached_tokens": 0}, "completion_tokens_details": None}
    details |= _reasoning(ask, speeches)
    head = envelope.head("chat.completion")
    return {**head, "choices": [choice], "usage": {**usage, **details}, "service_tier": None}


def _usage(ask: Ask, output_tokens: int) -> dict[str, Any]:
    prompt_tokens = sum(ask.prompts_tokens)
    counts = {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens + output_tokens}
    return {**counts, "completion_tokens": output_tokens}


def _reasoning(ask: Ask, speeches: Sequence[Speech]) -> dict[str, Any]:
    if ask.reasoning is None:
        return {}
    return {"completion_tokens_details": {"reasoning_tokens": sum(one.reasoning_tokens for one in speeches)}}
