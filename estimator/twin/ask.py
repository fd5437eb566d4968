"""OpenAI request bodies -> what the engine needs to know; wrong ones are refused in vLLM 0.32's own words.

The twin has no tokenizer: a token id is a token, and so is a word between white space.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from zlib import crc32

MAX_TOKENS_DEFAULT: Final = 16
"""Of /v1/completions; a chat may fill the context."""
TOKENS_PER_MESSAGE: Final = 4
TOKENS_PER_CHAT: Final = 3
"""What a chat template adds: around each message, and the generation prompt."""
VOCABULARY: Final = 32_000


class AskError(Exception):
    """A refused request: HTTP status and the fields of vLLM's error body."""

    def __init__(self, message: str, *, param: str | None, status: int = 400, kind: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.status = status
        self.kind = kind or "BadRequestError"

    def body(self) -> dict[str, object]:
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.status}
        return {"error": error}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One HTTP request: token counts of its prompts (several make several choices) and of each output."""

    chat: bool
    prompts_tokens: tuple[int, ...]
    output_tokens: int
    stream: bool
    include_usage: bool
    continuous_usage: bool


def parse_ask(body: Any, *, chat: bool, model: str, max_model_len: int) -> Ask:
    """Raises AskError; unknown keys (sampling parameters) are ignored, `ignore_eos` is always on."""
    fields = object_of(body)
    check_model(fields, model)
    prompts = [_chat_words(fields)] if chat else _prompts(fields)
    if _count(fields, "n", 1) != 1:
        raise AskError("the simulated server makes one choice a prompt: n must be 1", param="n")
    lengths = tuple(len(prompt) for prompt in prompts)
    longest = max(lengths)
    if longest > max_model_len:
        raise AskError(
            f"This model's maximum context length is {max_model_len} tokens. However, your prompt contains "
            f"{longest} input tokens, which exceeds this limit even without any output tokens. Please reduce "
            f"the length of the input prompt. (parameter=input_tokens, value={longest})",
            param="input_tokens",
        )
    options = fields.get("stream_options") or {}
    if not isinstance(options, dict):
        raise _invalid("stream_options", "dict_type", "Input should be a valid dictionary", options)
    include_usage = bool(options.get("include_usage"))
    return Ask(
        chat=chat,
        prompts_tokens=lengths,
        output_tokens=_output_tokens(fields, chat, max_model_len, longest),
        stream=bool(fields.get("stream")),
        include_usage=include_usage,
        continuous_usage=include_usage and bool(options.get("continuous_usage_stats")),
    )


def parse_tokenize(body: Any, *, model: str) -> list[int]:
    """Token ids of the prompt or messages, as a completion would count them. Raises AskError."""
    fields = object_of(body)
    check_model(fields, model)
    if "messages" in fields:
        return _chat_words(fields)
    prompt = fields.get("prompt")
    if not isinstance(prompt, str):
        raise _invalid("prompt", "string_type", "Input should be a valid string", prompt)
    return _words(prompt)


def object_of(body: Any) -> Mapping[str, Any]:
    if isinstance(body, dict):
        return body
    raise _invalid(
        None,
        "model_attributes_type",
        "Input should be a valid dictionary or object to extract fields from",
        body,
    )


def bad_json(position: int, reason: str) -> AskError:
    """What vLLM answers when the body is not JSON."""
    where = f"body.{position}"
    problem = {"type": "json_invalid", "loc": where, "msg": "JSON decode error"}
    shown = {**problem, "input": "<dict of 0 items>", "ctx": {"error": reason}}
    return AskError(f"1 validation error:\n  {shown}", param=where, kind="Bad Request")


def check_model(fields: Mapping[str, Any], model: str) -> None:
    asked = fields.get("model")
    if asked is not None and asked != model:
        raise AskError(
            f"The model `{asked}` does not exist. Valid aliases: {model}.",
            param="model",
            status=404,
            kind="NotFoundError",
        )


def _output_tokens(fields: Mapping[str, Any], chat: bool, max_model_len: int, longest: int) -> int:
    room = max_model_len - longest
    asked = _count(fields, "max_completion_tokens", None) if chat else None
    if asked is None:
        asked = _count(fields, "max_tokens", room if chat else MAX_TOKENS_DEFAULT)
    assert asked is not None
    if asked > max_model_len:
        raise AskError(
            f"max_tokens={asked} cannot be greater than max_model_len={max_model_len}. Please request fewer "
            f"output tokens. (parameter=max_tokens, value={asked})",
            param="max_tokens",
        )
    granted = min(asked, room)
    if granted < 1:
        raise AskError(
            f"max_tokens must be at least 1, got {granted}. (parameter=max_tokens, value={granted})",
            param="max_tokens",
        )
    return granted


def _prompts(fields: Mapping[str, Any]) -> list[list[int]]:
    """A string, a list of token ids, or a list of either."""
    prompt = fields.get("prompt")
    if prompt is None or prompt == "":
        raise AskError(
            "Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)",
            param="prompt",
        )
    if prompt == []:
        raise AskError("You must pass at least one prompt", param=None)
    several = isinstance(prompt, list) and not _is_id(prompt[0])
    prompts = [_tokens(one) for one in prompt] if several else [_tokens(prompt)]
    if not all(prompts):
        raise AskError("The decoder prompt cannot be empty", param="prompt")
    return prompts


def _tokens(prompt: Any) -> list[int]:
    if isinstance(prompt, str):
        return _words(prompt)
    if isinstance(prompt, list) and all(_is_id(token) for token in prompt):
        return prompt
    raise _invalid("prompt", "string_type", "Input should be a valid string", prompt)


def _chat_words(fields: Mapping[str, Any]) -> list[int]:
    messages = fields.get("messages")
    if not isinstance(messages, list):
        raise _invalid("messages", "list_type", "Input should be a valid list", messages)
    if not messages:
        raise AskError(
            "Cannot apply chat template to an empty conversation. Provide at least one message.", param=None
        )
    tokens = [0] * TOKENS_PER_CHAT
    for message in messages:
        if not isinstance(message, dict):
            raise _invalid("messages", "dict_type", "Input should be a valid dictionary", message)
        tokens += [0] * TOKENS_PER_MESSAGE + _words(_content(message.get("content")))
    return tokens


def _content(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, list) and all(
        isinstance(part, dict) and isinstance(part.get("text"), str) for part in content
    ):
        return " ".join(part["text"] for part in content)
    raise _invalid("messages", "string_type", "Input should be a valid string", content)


def _words(text: str) -> list[int]:
    return [crc32(word.encode()) % VOCABULARY for word in text.split()]


def _is_id(token: Any) -> bool:
    return isinstance(token, int) and not isinstance(token, bool) and token >= 0


def _count(fields: Mapping[str, Any], name: str, default: int | None) -> int | None:
    value = fields.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int):
        raise _invalid(name, "int_type", "Input should be a valid integer", value)
    return value


def _invalid(field: str | None, kind: str, message: str, value: Any) -> AskError:
    where = "body" if field is None else f"body.{field}"
    shown = value[:200] if isinstance(value, str) else value
    if isinstance(value, (dict, list)):
        shown = f"<{type(value).__name__} of {len(value)} items>"
    problem = {"type": kind, "loc": where, "msg": message, "input": shown}
    return AskError(f"1 validation error:\n  {problem}", param=where, kind="Bad Request")
