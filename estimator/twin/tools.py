"""What a chat asks for beyond text: thinking, and functions it wants called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from estimator.twin.refusals import AskError, invalid, problem


def thinks(fields: Mapping[str, Any]) -> bool:
    """As Qwen3's template has it: on, unless the request switches it off."""
    kwargs = fields.get("chat_template_kwargs") or {}
    return not isinstance(kwargs, dict) or kwargs.get("enable_thinking") is not False


def forced_tool(fields: Mapping[str, Any], parser: str | None, auto: bool) -> tuple[str | None, str]:
    """The function that must be called and the finish reason then; one that may be called never is."""
    tools = fields.get("tools") or []
    choice = fields.get("tool_choice", "auto" if tools else "none")
    if choice == "none" or not tools:
        return None, ""
    names = [_function_name(tool) for tool in tools] if isinstance(tools, list) else [None]
    if None in names:
        raise invalid(problem("tools", "dict_type", "Input should be a valid dictionary", tools))
    if choice == "auto":
        if not (parser and auto):
            said = '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
            raise AskError(said, param=None)
        return None, ""
    name = names[0] if choice == "required" else _function_name(choice)
    if name not in names:
        said = "The tool specified in `tool_choice` does not match any of the specified `tools`"
        raise AskError(said, param=None)
    if not parser:
        shown = f'"{choice}"' if choice == "required" else f'function "{name}"'
        raise AskError(f"tool_choice={shown} requires --tool-call-parser to be set", param=None)
    return name, "tool_calls" if choice == "required" else "stop"


def _function_name(tool: Any) -> str | None:
    function = tool.get("function") if isinstance(tool, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else None
