"""Tokens -> the bytes vLLM 0.32 sends for them, key for key; what does not change is encoded once a stream.

Checked against recorded streams in tests/fixtures/streams.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from estimator.twin.ask import Ask

FINGERPRINT: Final = "vllm-0.32.0-twin"
DONE: Final = b"data: [DONE]\n\n"
WORDS: Final = ("the", "tank", "is", "filled", "to", "its", "mark", "and", "no", "further")
_TEXT: Final = "\x00"
"""Stands for the text of a chunk while its frame is built; its last occurrence is the text."""


def text_of(first: int, count: int) -> str:
    """The words of output tokens `first` .. `first + count - 1`: one token is one word."""
    return "".join(" " + WORDS[position % len(WORDS)] for position in range(first, first + count))


class StreamWire:
    """Encodes one streamed answer."""

    def __init__(self, ask: Ask, *, answer_id: str, model: str, created_s: int) -> None:
        self._ask = ask
        self._base = {
            "id": answer_id,
            "object": "chat.completion.chunk" if ask.chat else "text_completion",
            "created": created_s,
            "model": model,
        }
        choices = range(len(ask.prompts_tokens))
        self._open = [self._frame(index, last=False) for index in choices]
        self._last = [self._frame(index, last=True) for index in choices]

    def role(self) -> bytes:
        """The chunk a chat begins with, sent with the first token; empty for completions."""
        if not self._ask.chat:
            return b""
        delta = {"role": "assistant", "content": ""}
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
        usage = {"usage": self._running_usage(0, 0)} if self._ask.continuous_usage else {}
        ends = {"prompt_token_ids": None, "prompt_text": None}
        return _event({**self._base, "choices": [choice], **usage, **ends})

    def tokens(self, index: int, text: str, output_tokens: int, *, last: bool) -> bytes:
        """One chunk for choice `index`; output_tokens counts those so far, these included."""
        before, after = (self._last if last else self._open)[index]
        usage = b""
        if self._ask.continuous_usage:
            usage = b',"usage":' + compact_json(self._running_usage(index, output_tokens))
        return before + compact_json(text)[1:-1] + after + usage + b"}\n\n"

    def end(self, output_tokens: Sequence[int]) -> bytes:
        """The usage chunk where asked for, and the end mark."""
        if not self._ask.include_usage:
            return DONE
        usage = usage_of(self._ask, output_tokens)
        return _event({**self._base, "choices": [], "usage": usage, "system_fingerprint": FINGERPRINT}) + DONE

    def _running_usage(self, index: int, output_tokens: int) -> dict[str, int | None]:
        prompt = self._ask.prompts_tokens[index]
        return {**_usage(prompt, output_tokens), "completion_tokens_details": None}

    def _frame(self, index: int, *, last: bool) -> tuple[bytes, bytes]:
        """A content chunk cut where its text goes, without the closing brace."""
        end: dict[str, Any] = {"logprobs": None, "finish_reason": "length" if last else None}
        if self._ask.chat:
            stop = {"stop_reason": None} if last else {}
            choice = {"index": index, "delta": {"content": _TEXT}, **end, **stop, "token_ids": None}
        else:
            ids = {"stop_reason": None, "prompt_token_ids": None, "token_ids": None}
            choice = {"index": index, "text": _TEXT, **end, **ids}
        whole = compact_json({**self._base, "choices": [choice]})
        before, _, after = whole.rpartition(compact_json(_TEXT)[1:-1])
        return b"data: " + before, after[:-1]


def whole_answer(
    ask: Ask,
    texts: Sequence[str],
    *,
    answer_id: str,
    model: str,
    created_s: int,
    output_tokens: Sequence[int],
) -> dict[str, Any]:
    """The body of an answer that is not streamed."""
    ends = {"service_tier": None, "system_fingerprint": FINGERPRINT}
    nulls = {"prompt_tokens_details": None, "completion_tokens_details": None}
    usage = {**usage_of(ask, output_tokens), **nulls}
    tail = {"kv_transfer_params": None, "ec_transfer_params": None, "metrics": None}
    head = {"id": answer_id, "object": "chat.completion" if ask.chat else "text_completion"}
    made = {"created": created_s, "model": model}
    if ask.chat:
        choices = [_chat_choice(texts[0])]
        prompt = {"prompt_logprobs": None, "prompt_token_ids": None, "prompt_text": None}
        return {**head, **made, "choices": choices, **ends, "usage": usage, **prompt, **tail}
    choices = [_text_choice(index, text) for index, text in enumerate(texts)]
    return {**head, **made, "choices": choices, **ends, "usage": usage, **tail}


def usage_of(ask: Ask, output_tokens: Sequence[int]) -> dict[str, int]:
    return _usage(sum(ask.prompts_tokens), sum(output_tokens))


def _usage(prompt: int, output: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "total_tokens": prompt + output, "completion_tokens": output}


_ENDED: Final = {"logprobs": None, "finish_reason": "length", "stop_reason": None, "token_ids": None}


def _text_choice(index: int, text: str) -> dict[str, Any]:
    ids = {"prompt_logprobs": None, "prompt_token_ids": None, "routed_experts": None}
    return {"index": index, "text": text, **_ENDED, **ids}


def _chat_choice(text: str) -> dict[str, Any]:
    unused = ("refusal", "annotations", "audio", "function_call", "reasoning")
    message = {"role": "assistant", "content": text, **dict.fromkeys(unused)}
    return {"index": 0, "message": message, **_ENDED, "routed_experts": None}


def _event(body: Any) -> bytes:
    return b"data: " + compact_json(body) + b"\n\n"


def compact_json(body: Any) -> bytes:
    """JSON without spaces, as vLLM writes it."""
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()
