"""Request bodies as LMDeploy 0.18 takes them, and its refusals in its own words (lmdeploy/serve/openai)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from estimator.twin.ask import MAX_TOKENS_DEFAULT, Ask, Rules, object_of
from estimator.twin.refusals import AskError, invalid, missing, problem
from estimator.twin.tokens import ids_of, ids_of_chat
from estimator.twin.tools import thinks

TYPES: Final = {401: "authentication_error", 404: "not_found_error", 500: "server_error", 503: "server_error"}


def refusal(error: AskError) -> dict[str, Any]:
    """LMDeploy's error body: of the findings about the form, the first."""
    message = error.message
    if error.problems:
        first = error.problems[0]
        where = str(first["loc"]).removeprefix("body").lstrip(".")
        message = f"{where}: {first['msg']}" if where else str(first["msg"])
    kind = TYPES.get(error.status, "invalid_request_error")
    return {"message": message, "type": kind, "code": error.status, "param": None, "object": "error"}


def parse_lmdeploy(body: Any, chat: bool, rules: Rules) -> Ask:
    """Raises AskError; unknown keys are ignored. One choice a prompt, as everywhere in the twin."""
    fields = object_of(body)
    prompts = _chat(fields) if chat else _prompts(fields)
    if fields.get("model", rules.model) != rules.model:
        raise AskError(f"The model {fields['model']!r} does not exist.", param=None, status=404)
    _check_sampling(fields, chat)
    for prompt in prompts:
        if len(prompt) >= rules.max_model_len:
            raise AskError(
                f"Input length ({len(prompt)}) must be smaller than the model context length "
                f"({rules.max_model_len}).",
                param=None,
            )
    longest = max(len(prompt) for prompt in prompts)
    options = fields.get("stream_options")
    stream = bool(fields.get("stream"))
    return Ask(
        chat=chat,
        prompts_tokens=tuple(len(prompt) for prompt in prompts),
        max_tokens=_max_tokens(fields, chat, rules.max_model_len - longest),
        min_tokens=_integer(fields, "min_new_tokens") or 0,
        ignore_eos=bool(fields.get("ignore_eos")),
        stream=stream,
        include_usage=stream and isinstance(options, dict) and bool(options.get("include_usage")),
        reasoning=thinks(fields) if chat and rules.reasoning_parser else None,
    )


def parse_encode(body: Any) -> dict[str, Any]:
    """The answer of /v1/encode. Raises AskError."""
    fields = object_of(body)
    if "input" not in fields:
        raise invalid(missing("input", fields))
    text = fields["input"]
    if isinstance(text, str):
        return {"input_ids": ids_of(text), "length": len(text.split())}
    if isinstance(text, list) and all(isinstance(one, str) for one in text):
        return {"input_ids": [ids_of(one) for one in text], "length": [len(one.split()) for one in text]}
    raise invalid(problem("input.str", "string_type", "Input should be a valid string", text))


def _check_sampling(fields: Mapping[str, Any], chat: bool) -> None:
    for name, holds, rule in (
        ("n", lambda value: value > 0, "must be a positive int."),
        ("top_p", lambda value: 0 < value <= 1, "must be in (0, 1]."),
        ("temperature", lambda value: 0 <= value <= 2, "must be in [0, 2]"),
        *((("max_tokens", lambda value: value > 0, "must be a positive integer."),) if chat else ()),
    ):
        value = fields.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise invalid(problem(name, "float_type", "Input should be a valid number", value))
        shown = float(value) if name in ("top_p", "temperature") else value
        if not holds(shown):
            raise AskError(f"The {name} {shown!r} {rule}", param=None)
    if fields.get("n") not in (None, 1):
        raise AskError("the simulated server makes one choice a prompt: n must be 1", param=None)
    if fields.get("tools") and fields.get("tool_choice") != "none":
        said = "Please launch the api_server with --tool-call-parser if you want to use tools."
        raise AskError(said, param=None)


def _max_tokens(fields: Mapping[str, Any], chat: bool, room: int) -> int:
    asked = _integer(fields, "max_completion_tokens")
    if asked is None:
        asked = _integer(fields, "max_tokens")
    if asked is None:
        asked = room if chat else MAX_TOKENS_DEFAULT
    if asked < 1:
        raise AskError(f"max_new_tokens must be at least 1, got {asked}.", param=None)
    return min(asked, room)


def _integer(fields: Mapping[str, Any], name: str) -> int | None:
    value = fields.get(name)
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise invalid(problem(name, "int_type", "Input should be a valid integer", value))


def _prompts(fields: Mapping[str, Any]) -> list[list[int]]:
    if "prompt" not in fields:
        raise invalid(missing("prompt", fields))
    prompt = fields["prompt"]
    texts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(texts, list) or not texts or not all(isinstance(one, str) for one in texts):
        raise invalid(problem("prompt.str", "string_type", "Input should be a valid string", prompt))
    return [ids_of(one) or [0] for one in texts]


def _chat(fields: Mapping[str, Any]) -> list[list[int]]:
    if "messages" not in fields:
        raise invalid(missing("messages", fields))
    messages = fields["messages"]
    if isinstance(messages, str):
        return [ids_of_chat([("user", messages)])]
    if not isinstance(messages, list) or not all(isinstance(one, dict) for one in messages):
        raise invalid(problem("messages.str", "string_type", "Input should be a valid string", messages))
    if not messages:
        raise AskError("messages must not be empty unless input_ids is set.", param=None)
    return [ids_of_chat((str(one.get("role", "")), _content(one.get("content"))) for one in messages)]


def _content(content: Any) -> str:
    if isinstance(content, list):
        return " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""
