"""OpenAI request bodies -> what the engine needs to know; wrong ones are refused in vLLM 0.32's own words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from estimator.twin.prompts import cache_salt_of, chat_ids_of, is_text, prompts_of
from estimator.twin.refusals import AskError, invalid, missing, problem
from estimator.twin.tokens import ids_of
from estimator.twin.tools import forced_tool, thinks

MAX_TOKENS_DEFAULT: Final = 16
"""Of /v1/completions; a chat may fill the context."""
Preflight = Callable[[], None]
SAMPLING: Final[tuple[tuple[str, str, Callable[[float], bool]], ...]] = (
    ("temperature", "must be non-negative", lambda value: value >= 0.0),
    ("top_p", "must be in (0, 1]", lambda value: 0.0 < value <= 1.0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What the server was started with, as far as it decides which requests are right."""

    model: str
    max_model_len: int
    reasoning_parser: str | None = None
    tool_call_parser: str | None = None
    enable_auto_tool_choice: bool = False
    enable_prompt_tokens_details: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One HTTP request: token counts of its prompts (several make several choices) and how it may end."""

    chat: bool
    prompts_tokens: tuple[int, ...]
    max_tokens: int
    min_tokens: int = 0
    ignore_eos: bool = False
    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    reasoning: bool | None = None
    """Whether it thinks first; None where the server splits off no reasoning."""
    tool: str | None = None
    """The function it has to call."""
    tool_finish: str = "tool_calls"
    prompts_ids: tuple[Sequence[int], ...] = ()
    """The prompts themselves, for the prefix cache; () where there is none."""
    cache_salt: str = ""
    """Prompts of different salts share no cached prefix."""
    prompt_tokens_details: bool = False
    """The usage tells how many tokens of the prompt were found in the cache."""


def parse_ask(body: Any, *, chat: bool, rules: Rules, preflight: Preflight = lambda: None) -> Ask:
    """Raises AskError; unknown keys (most sampling parameters) are ignored.

    `preflight` raises one of its own where the server is full: vLLM asks once the prompt is rendered, before
    it looks at how the output is to be made.
    """
    fields = object_of(body)
    check_model(fields, rules.model)
    stream = bool(fields.get("stream"))
    options = _stream_options(fields, stream)
    prompts = [chat_ids_of(fields)] if chat else prompts_of(fields)
    salt = cache_salt_of(fields)
    tool, tool_finish = (
        forced_tool(fields, rules.tool_call_parser, rules.enable_auto_tool_choice) if chat else (None, "")
    )
    lengths = tuple(len(prompt) for prompt in prompts)
    worded = chat or is_text(fields["prompt"])
    if worded:
        _check_room(max(lengths), rules.max_model_len, exact=False)
    preflight()
    _check_sampling(fields)
    _check_room(max(lengths), rules.max_model_len, exact=not worded)
    max_tokens = _max_tokens(fields, chat, rules.max_model_len, max(lengths))
    include_usage = bool(options.get("include_usage"))
    return Ask(
        chat=chat,
        prompts_tokens=lengths,
        max_tokens=max_tokens,
        min_tokens=_min_tokens(fields, max_tokens),
        ignore_eos=bool(fields.get("ignore_eos")),
        stream=stream,
        include_usage=include_usage,
        continuous_usage=include_usage and bool(options.get("continuous_usage_stats")),
        reasoning=thinks(fields) if chat and rules.reasoning_parser else None,
        tool=tool,
        tool_finish=tool_finish,
        prompts_ids=tuple(prompts),
        cache_salt=salt,
        prompt_tokens_details=rules.enable_prompt_tokens_details,
    )


def parse_tokenize(body: Any, *, model: str) -> tuple[list[int], list[str] | None]:
    """Token ids of the prompt or messages, as a completion would count them, and their words where wanted."""
    fields = object_of(body)
    check_model(fields, model)
    if "messages" in fields:
        ids = chat_ids_of(fields)
        words = [str(one) for one in ids]
    elif isinstance(prompt := fields.get("prompt"), str):
        ids, words = ids_of(prompt), prompt.split()
    elif prompt is None:
        raise invalid(missing("prompt", fields), missing("messages", fields))
    else:
        raise invalid(problem("prompt", "string_type", "Input should be a valid string", prompt))
    return ids, words if fields.get("return_token_strs") else None


def parse_detokenize(body: Any, *, model: str) -> list[int]:
    """The ids of a /detokenize request. Raises AskError."""
    fields = object_of(body)
    check_model(fields, model)
    tokens = fields.get("tokens")
    if not isinstance(tokens, list):
        raise invalid(
            missing("tokens", fields)
            if tokens is None
            else problem("tokens", "list_type", "Input should be a valid list", tokens)
        )
    return [_integer(f"tokens.{index}", token) for index, token in enumerate(tokens)]


def object_of(body: Any) -> Mapping[str, Any]:
    if isinstance(body, dict):
        return body
    said = "Input should be a valid dictionary or object to extract fields from"
    raise invalid(problem(None, "model_attributes_type", said, body))


def check_model(fields: Mapping[str, Any], model: str) -> None:
    asked = fields.get("model")
    if asked is not None and asked != model:
        raise AskError(
            f"The model `{asked}` does not exist. Valid aliases: {model}.",
            param="model",
            status=404,
            kind="NotFoundError",
        )


def _check_sampling(fields: Mapping[str, Any]) -> None:
    """vLLM's SamplingParams._verify_args, the checks of keys that a load test sends."""
    choices = _count(fields, "n", 1)
    assert choices is not None
    if choices < 1:
        raise AskError(f"n must be at least 1, got {choices}.", param=None)
    if choices > 1:
        raise AskError("the simulated server makes one choice a prompt: n must be 1", param="n")
    for name, rule, holds in SAMPLING:
        value = fields.get(name)
        if value is not None and not isinstance(value, int | float):
            raise invalid(problem(name, "float_type", "Input should be a valid number", value))
        if value is not None and not holds(float(value)):
            said = f"{name} {rule}, got {float(value)}. (parameter={name}, value={float(value)})"
            raise AskError(said, param=name)


def _check_room(longest: int, max_model_len: int, *, exact: bool) -> None:
    if longest <= max_model_len:
        return
    # vLLM stops tokenizing a text one token beyond its limit, so it does not know the whole length.
    counted = longest if exact else max_model_len + 1
    raise AskError(
        f"This model's maximum context length is {max_model_len} tokens. However, your prompt contains "
        f"{'' if exact else 'at least '}{counted} input tokens, which exceeds this limit even without any "
        f"output tokens. Please reduce the length of the input prompt. (parameter=input_tokens, "
        f"value={counted})",
        param="input_tokens",
    )


def _max_tokens(fields: Mapping[str, Any], chat: bool, max_model_len: int, longest: int) -> int:
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


def _min_tokens(fields: Mapping[str, Any], max_tokens: int) -> int:
    least = _count(fields, "min_tokens", 0)
    assert least is not None
    if least < 0:
        raise AskError(f"min_tokens must be greater than or equal to 0, got {least}.", param=None)
    if least > max_tokens:
        said = f"min_tokens must be less than or equal to max_tokens={max_tokens}, got {least}."
        raise AskError(said, param=None)
    return least


def _stream_options(fields: Mapping[str, Any], stream: bool) -> Mapping[str, Any]:
    options = fields.get("stream_options")
    if options is None:
        return {}
    if not isinstance(options, dict):
        said = "Input should be a valid dictionary or object to extract fields from"
        raise invalid(problem("stream_options", "model_attributes_type", said, options))
    if not stream:
        said = "Stream options can only be defined when `stream=True`. (parameter=stream_options)"
        raise AskError(said, param="stream_options")
    return options


def _count(fields: Mapping[str, Any], name: str, default: int | None) -> int | None:
    value = fields.get(name)
    return default if value is None else _integer(name, value)


def _integer(name: str, value: Any) -> int:
    if isinstance(value, str):
        said = "Input should be a valid integer, unable to parse string as an integer"
        raise invalid(problem(name, "int_parsing", said, value))
    if isinstance(value, bool) or not isinstance(value, int):
        raise invalid(problem(name, "int_type", "Input should be a valid integer", value))
    return value
