"""A dataset's prompt as it is sent: behind words that no other request has, or just as it was recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from loadtest.scenario import Endpoint
from loadtest.scenario.dataset_file import DatasetRow
from loadtest.workload.prompts import Messages, joined


def as_sent(row: DatasetRow, endpoint: Endpoint, system: str | None, mark: Sequence[str]) -> str | Messages:
    """Text for completions, messages for chat. mark: the words in front; () leaves the row as it is."""
    if isinstance(row.prompt, str):
        text = _marked(row.prompt, mark)
        return text if endpoint == "completions" else with_system([{"role": "user", "content": text}], system)
    first, *others = row.prompt
    marked = [{**first, "content": _marked(first["content"], mark)}, *others]
    if endpoint == "completions":
        return "\n\n".join(message["content"] for message in marked)
    return with_system(marked, system)


def with_system(messages: Sequence[Mapping[str, object]], system: str | None) -> Messages:
    """With the scenario's system prompt in front, where it has one."""
    return [*([] if system is None else [{"role": "system", "content": system}]), *messages]


def _marked(text: str, mark: Sequence[str]) -> str:
    return f"{joined(mark)}\n\n{text}" if mark else text
