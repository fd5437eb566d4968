"""Asks a server how many tokens a prompt has, in its engine's own way."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Protocol

from estimator.spec import EngineName
from loadtest.conductor.server_facts import Answer, ServerError, ask
from loadtest.origin import ApiKey, Origin
from loadtest.workload.prompts import Messages, Tokenize


class Counting(Protocol):
    """Who counts the tokens of a model's prompts: its server, or a tokenizer of our own."""

    @property
    def model(self) -> str: ...
    @property
    def engine(self) -> EngineName: ...
    def counter(self, tools: Sequence[Mapping[str, Any]] = ()) -> Tokenize: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenizer:
    """Where to ask, and how this engine is asked.

    vLLM: /tokenize. LMDeploy: /v1/encode for a text, and for messages the usage of an answer of one token;
    its /v1/encode puts a lone prompt into its chat template by another way than a chat request goes.
    What was counted is not asked again: one word may be an answer of LMDeploy's engine.
    """

    origin: Origin
    key: ApiKey | None
    model: str
    engine: EngineName
    _counted: dict[bytes, int] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Counts by the hash of their question."""

    def counter(self, tools: Sequence[Mapping[str, Any]] = ()) -> Tokenize:
        """Counts texts and messages; ServerError where the server does not."""

        def tokenize(prompt: str | Messages) -> int:
            path, body, fields = _question(self.model, self.engine, prompt, tools)
            question = sha256(json.dumps([path, body]).encode()).digest()
            if question not in self._counted:
                self._counted[question] = self._asked(path, body, fields)
            return self._counted[question]

        return tokenize

    def _asked(self, path: str, body: Mapping[str, Any], fields: Sequence[str]) -> int:
        answer = ask(self.origin, path, self.key, body=body)
        try:
            count: Any = json.loads(answer.body)
            for field_name in fields:
                count = count[field_name]
        except (ValueError, KeyError, TypeError) as error:
            raise _no_tokens(self.origin, path, answer) from error
        if answer.status != 200 or type(count) is not int:
            raise _no_tokens(self.origin, path, answer)
        return count


def _question(
    model: str, engine: str, prompt: str | Messages, tools: Sequence[Mapping[str, Any]]
) -> tuple[str, dict[str, Any], tuple[str, ...]]:
    """Path, body, and where the count stands in the answer."""
    with_tools = {"tools": list(tools)} if tools else {}
    if engine != "lmdeploy":
        if isinstance(prompt, str):
            return "/tokenize", {"model": model, "prompt": prompt}, ("count",)
        return "/tokenize", {"model": model, "messages": prompt, **with_tools}, ("count",)
    if isinstance(prompt, str):
        return "/v1/encode", {"input": prompt, "do_preprocess": False}, ("length",)
    body = {"model": model, "messages": prompt, "max_tokens": 1, **with_tools}
    return "/v1/chat/completions", body, ("usage", "prompt_tokens")


def _no_tokens(origin: Origin, path: str, answer: Answer) -> ServerError:
    return ServerError(
        f"{origin}{path} answered {answer.status} and counts no tokens, so chat prompts cannot be exact: "
        "use endpoint: completions"
    )
