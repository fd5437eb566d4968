"""Speech -> the bytes vLLM 0.32 sends for it, key for key; what does not change is encoded once a stream.

Checked against recorded answers in tests/fixtures/conformance and recorded streams in tests/fixtures/streams.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from estimator.twin.ask import Ask
from estimator.twin.speech import Part, Speech
from estimator.twin.tokens import WORDS, text_of

FINGERPRINT: Final = "vllm-0.32.0-twin"
DONE: Final = b"data: [DONE]\n\n"
_TEXT: Final = "\x00"
"""Stands for the text of a chunk while its frame is built; its last occurrence is the text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """What all chunks of an answer share."""

    answer_id: str
    model: str
    created_s: int

    def head(self, kind: str) -> dict[str, Any]:
        return {"id": self.answer_id, "object": kind, "created": self.created_s, "model": self.model}


class StreamWire:
    """Encodes one streamed answer, one speech a choice."""

    def __init__(self, ask: Ask, speeches: Sequence[Speech], envelope: Envelope) -> None:
        self._ask = ask
        self._speeches = speeches
        self._base = envelope.head("chat.completion.chunk" if ask.chat else "text_completion")
        self._open = [self._frame(index, "content", last=False) for index in range(len(speeches))]

    def role(self) -> bytes:
        """The chunk a chat begins with, sent with the first token; empty for completions."""
        if not self._ask.chat:
            return b""
        delta = {"role": "assistant", "content": ""}
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
        usage = {"usage": self._running_usage(0, 0)} if self._ask.continuous_usage else {}
        ends = {"prompt_token_ids": None, "prompt_text": None}
        return _event({**self._base, "choices": [choice], **usage, **ends}) + self._tool_name()

    def words(self, index: int) -> tuple[bytes, ...]:
        """The chunks of one token each that all but the first and last are, by token modulo their number.

        Empty where chunks differ from token to token.
        """
        speech = self._speeches[index]
        if self._ask.continuous_usage or speech.reasoning_tokens or speech.tool is not None:
            return ()
        before, after = self._open[index]
        return tuple(before + text_of(word, 1).encode() + after + b"}\n\n" for word in range(len(WORDS)))

    def tokens(self, index: int, first: int, count: int) -> bytes:
        """The chunks for output tokens `first` .. of choice `index`: one, or two where thinking ends."""
        speech = self._speeches[index]
        last = first + count == speech.output_tokens
        pieces = list(speech.pieces(first, count))
        usage = b""
        if self._ask.continuous_usage:
            usage = b',"usage":' + compact_json(self._running_usage(index, first + count))
        chunks = []
        for place, (part, text) in enumerate(pieces):
            ends = last and place + 1 == len(pieces) and part != "arguments"
            if text or part != "arguments":
                frame = (
                    self._open[index]
                    if part == "content" and not ends
                    else self._frame(index, part, last=ends)
                )
                before, after = frame
                chunks.append(before + compact_json(text)[1:-1] + after + usage + self._ending(ends))
        if last and speech.tool is not None:
            before, after = self._frame(index, "nothing", last=True)
            chunks.append(before + after + usage + self._ending(True))
        return b"".join(chunks)

    def end(self, output_tokens: Sequence[int], cached_tokens: Sequence[int]) -> bytes:
        """The usage chunk where asked for, and the end mark."""
        if not self._ask.include_usage:
            return DONE
        usage = usage_of(self._ask, output_tokens)
        if self._ask.prompt_tokens_details:
            usage["prompt_tokens_details"] = _found(self._ask, self._speeches[0], cached_tokens[0])
        usage |= self._details()
        return _event({**self._base, "choices": [], "usage": usage, "system_fingerprint": FINGERPRINT}) + DONE

    def _ending(self, last: bool) -> bytes:
        """The fingerprint comes with the last event before the end mark."""
        fingerprint = last and not self._ask.include_usage
        return (b',"system_fingerprint":' + compact_json(FINGERPRINT) if fingerprint else b"") + b"}\n\n"

    def _details(self) -> dict[str, Any]:
        if self._ask.reasoning is None:
            return {}
        thought = sum(speech.reasoning_tokens for speech in self._speeches)
        return {"completion_tokens_details": {"reasoning_tokens": thought}}

    def _running_usage(self, index: int, output_tokens: int) -> dict[str, Any]:
        usage = _usage(self._speeches[index].prompt_tokens, output_tokens)
        if not self._ask.chat:
            return usage
        if self._ask.reasoning is None:
            return {**usage, "completion_tokens_details": None}
        thought = min(output_tokens, self._speeches[index].reasoning_tokens)
        return {**usage, "completion_tokens_details": {"reasoning_tokens": thought}}

    def _tool_name(self) -> bytes:
        tool = self._speeches[0].tool
        if tool is None:
            return b""
        call = {"id": _tool_id(), "type": "function", "index": 0, "function": {"name": tool}}
        return _event({**self._base, "choices": [self._choice(0, {"content": None, "tool_calls": [call]})]})

    def _frame(self, index: int, part: Part | str, *, last: bool) -> tuple[bytes, bytes]:
        """A chunk cut where its text goes, without the closing brace."""
        if self._ask.chat:
            choice = self._choice(index, _DELTAS[part], last=last)
        else:
            finish = self._speeches[index].finish_reason if last else None
            ids = {"stop_reason": None, "prompt_token_ids": None, "token_ids": None}
            choice = {"index": index, "text": _TEXT, "logprobs": None, "finish_reason": finish, **ids}
        whole = compact_json({**self._base, "choices": [choice]})
        if part == "nothing":
            return b"data: " + whole[:-1], b""
        before, _, after = whole.rpartition(compact_json(_TEXT)[1:-1])
        return b"data: " + before, after[:-1]

    def _choice(self, index: int, delta: Any, *, last: bool = False) -> dict[str, Any]:
        finish = self._speeches[index].finish_reason if last else None
        stop = {"stop_reason": None} if last else {}
        end = {"logprobs": None, "finish_reason": finish, **stop, "token_ids": None}
        return {"index": index, "delta": delta, **end}


_DELTAS: Final[dict[str, dict[str, Any]]] = {
    "content": {"content": _TEXT},
    "reasoning": {"reasoning": _TEXT},
    "arguments": {"content": None, "tool_calls": [{"index": 0, "function": {"arguments": _TEXT}}]},
    "nothing": {},
}


def whole_answer(
    ask: Ask, speeches: Sequence[Speech], envelope: Envelope, cached_tokens: Sequence[int]
) -> dict[str, Any]:
    """The body of an answer that is not streamed; cached_tokens: found of each prompt in the cache."""
    ends = {"service_tier": None, "system_fingerprint": FINGERPRINT}
    usage: dict[str, Any] = {
        **usage_of(ask, [speech.output_tokens for speech in speeches]),
        "prompt_tokens_details": None,
        "completion_tokens_details": None,
    }
    if ask.prompt_tokens_details:
        nothing = dict.fromkeys(("cached_tokens", "created_cache_tokens", "multimodal_tokens"))
        # of several prompts vLLM tells the last one's, and in a stream the first one's
        usage["prompt_tokens_details"] = nothing | _found(ask, speeches[-1], cached_tokens[-1])
    if ask.reasoning is not None:
        thought = sum(speech.reasoning_tokens for speech in speeches)
        usage["completion_tokens_details"] = {"reasoning_tokens": thought}
    tail = {"kv_transfer_params": None, "ec_transfer_params": None, "metrics": None}
    if ask.chat:
        head = envelope.head("chat.completion")
        prompt = {"prompt_logprobs": None, "prompt_token_ids": None, "prompt_text": None}
        return {**head, "choices": [_chat_choice(speeches[0])], **ends, "usage": usage, **prompt, **tail}
    choices = [_text_choice(index, speech) for index, speech in enumerate(speeches)]
    return {**envelope.head("text_completion"), "choices": choices, **ends, "usage": usage, **tail}


def usage_of(ask: Ask, output_tokens: Sequence[int]) -> dict[str, Any]:
    return _usage(sum(ask.prompts_tokens), sum(output_tokens))


def _usage(prompt: int, output: int) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "total_tokens": prompt + output, "completion_tokens": output}


def _found(ask: Ask, speech: Speech, cached_tokens: int) -> dict[str, Any]:
    found = {"cached_tokens": cached_tokens}
    if ask.chat:
        found["created_cache_tokens"] = max(0, speech.cacheable_tokens - cached_tokens)
    return found


def _ended(speech: Speech) -> dict[str, Any]:
    return {"logprobs": None, "finish_reason": speech.finish_reason, "stop_reason": None, "token_ids": None}


def _text_choice(index: int, speech: Speech) -> dict[str, Any]:
    ids = {"prompt_logprobs": None, "prompt_token_ids": None, "routed_experts": None}
    return {"index": index, "text": speech.part("content"), **_ended(speech), **ids}


def _chat_choice(speech: Speech) -> dict[str, Any]:
    content: str | None = speech.part("content")
    calls: dict[str, Any] = {}
    if speech.tool is not None:
        function = {"name": speech.tool, "arguments": speech.part("arguments")}
        calls = {"tool_calls": [{"id": _tool_id(), "type": "function", "function": function}]}
    reasoning = speech.part("reasoning") or None
    if reasoning and not content:
        content = None
    unused = ("refusal", "annotations", "audio", "function_call")
    message = {
        "role": "assistant",
        "content": content,
        **dict.fromkeys(unused),
        **calls,
        "reasoning": reasoning,
    }
    return {"index": 0, "message": message, **_ended(speech), "routed_experts": None}


def _tool_id() -> str:
    return f"chatcmpl-tool-{secrets.token_hex(8)}"


def _event(body: Any) -> bytes:
    return b"data: " + compact_json(body) + b"\n\n"


def compact_json(body: Any) -> bytes:
    """JSON without spaces, as vLLM writes it."""
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()
