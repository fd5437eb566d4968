"""What a request gives to read: the prompt or the messages of a body -> token ids, as vLLM takes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from estimator.twin.refusals import AskError, invalid, missing, problem
from estimator.twin.tokens import ids_of, ids_of_chat


def prompts_of(fields: Mapping[str, Any]) -> list[list[int]]:
    """Of a completion: a string, a list of token ids, or a list of either. Raises AskError."""
    prompt = fields.get("prompt")
    if prompt is None or prompt == "":
        raise AskError(
            "Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)",
            param="prompt",
        )
    if prompt == []:
        raise AskError("You must pass at least one prompt", param=None)
    several = isinstance(prompt, list) and not _is_id(prompt[0])
    prompts = [_ids(one) for one in prompt] if several else [_ids(prompt)]
    if not all(prompts):
        raise AskError("The decoder prompt cannot be empty", param="prompt")
    return prompts


def _ids(prompt: Any) -> list[int]:
    if isinstance(prompt, str):
        return ids_of(prompt)
    if isinstance(prompt, list) and all(_is_id(token) for token in prompt):
        return prompt
    raise invalid(problem("prompt", "string_type", "Input should be a valid string", prompt))


def is_text(prompt: Any) -> bool:
    """Words that had to be counted first, in whole or in part."""
    return isinstance(prompt, str) or any(isinstance(one, str) for one in prompt)


def chat_ids_of(fields: Mapping[str, Any]) -> list[int]:
    """Of a chat. Raises AskError."""
    messages = fields.get("messages")
    if messages is None:
        raise invalid(missing("messages", fields))
    if not isinstance(messages, list):
        raise invalid(problem("messages", "list_type", "Input should be a valid list", messages))
    if not messages:
        raise AskError(
            "Cannot apply chat template to an empty conversation. Provide at least one message.", param=None
        )
    for message in messages:
        if not isinstance(message, dict):
            raise invalid(problem("messages", "dict_type", "Input should be a valid dictionary", message))
    return ids_of_chat((str(one.get("role", "")), _content(one.get("content"))) for one in messages)


def cache_salt_of(fields: Mapping[str, Any]) -> str:
    """What keeps a prompt's cached blocks from those of other salts; "" where it names none."""
    salt = fields.get("cache_salt")
    if salt is not None and (not isinstance(salt, str) or not salt):
        said = "Parameter 'cache_salt' must be a non-empty string if provided. (parameter=cache_salt)"
        raise AskError(said, param="cache_salt")
    return salt or ""


def _content(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, list) and all(
        isinstance(part, dict) and isinstance(part.get("text"), str) for part in content
    ):
        return " ".join(part["text"] for part in content)
    raise invalid(problem("messages", "string_type", "Input should be a valid string", content))


def _is_id(token: Any) -> bool:
    return isinstance(token, int) and not isinstance(token, bool) and token >= 0
