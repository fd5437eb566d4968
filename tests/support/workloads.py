"""Scenarios in a few words, and what their askers ask, with a tokenizer that counts words."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from loadtest.scenario import Scenario, parse_scenario
from loadtest.scenario.reading import with_files
from loadtest.workload.ask import Ask, Asker
from loadtest.workload.asker import open_workload
from loadtest.workload.prompts import WORDS, ChatWords

CHAT: Final = ChatWords(words=WORDS, overhead_tokens=9, turn_tokens=6)
LENGTHS: Final = {
    "input_tokens": {"kind": "uniform", "min": 40, "max": 300},
    "output_tokens": {"kind": "lognormal", "median": 40, "sigma": 0.7, "min": 4, "max": 200},
}
STAGES: Final = [{"users": 3, "hold_s": 20}]


def a_scenario(lengths: Mapping[str, Any] = LENGTHS, **changes: Any) -> Scenario:
    """Its files are read. lengths: {} where a trace or dataset brings them."""
    return with_files(parse_scenario({"name": "w", "seed": 5, "stages": STAGES, **lengths, **changes}))


def an_asker(scenario: Scenario, *, run_id: str = "r", worker: int = 0, workers: int = 1) -> Asker:
    chat = None if scenario.endpoint == "completions" and scenario.dataset is None else CHAT
    if scenario.dataset is not None and not scenario.dataset.unique:
        chat = None
    return open_workload(scenario, model="base", run_id=run_id, worker=worker, workers=workers, chat=chat)


def conversation(asker: Asker, seq: int, answer: str = "well") -> Iterator[Ask]:
    """All turns that a user asks from request `seq` on."""
    ask: Ask | None = asker.first(seq)
    while ask is not None:
        yield ask
        ask = asker.following(ask, seq + 1, answer)


def text_of(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def counted(ask: Ask) -> int:
    """Tokens of the prompt: ids, or words with CHAT's template around them."""
    if "prompt" in ask.body:
        prompt = ask.body["prompt"]
        return len(prompt.split()) if isinstance(prompt, str) else len(prompt)
    messages = ask.body["messages"]
    turns = sum(message["role"] == "user" for message in messages)
    words = sum(len(text_of(message["content"]).split()) for message in messages)
    return words + CHAT.overhead_tokens + (turns - 1) * CHAT.turn_tokens


def as_bytes(ask: Ask) -> bytes:
    return json.dumps([ask.body, ask.input_tokens, ask.output_tokens, ask.think_s]).encode()
