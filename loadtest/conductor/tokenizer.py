"""Asks a server's tokenizer how long chat messages are, and by it finds words of exact lengths."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from loadtest.conductor.prepare import PreparedRun
from loadtest.conductor.server_facts import Answer, ServerError, ask
from loadtest.origin import ApiKey, Origin, parse_origin, read_api_key
from loadtest.scenario import ScenarioError
from loadtest.workers.prompts import ChatWords, Messages, Tokenize, calibrate, check_room


def chat_words(run: PreparedRun) -> ChatWords | None:
    """Words of one token each on this server; None for token prompts. Raises PlainError if there are too few.

    Asks the server some 200 times, so the process that decides the load does it once for all.
    """
    if run.scenario.endpoint != "chat":
        if run.manifest.engine == "lmdeploy":  # it would take each token id for a prompt of its own
            raise ScenarioError("LMDeploy takes no token ids as a prompt: set endpoint: chat in the scenario")
        check_room(run.scenario, None)
        return None
    origin, key = parse_origin(run.manifest.host), read_api_key()
    words = calibrate(tokenizer(origin, key, run.manifest.model, run.manifest.engine))
    check_room(run.scenario, words)
    return words


def tokenizer(origin: Origin, key: ApiKey | None, model: str, engine: str) -> Tokenize:
    """vLLM: /tokenize. LMDeploy: /v1/encode, which applies the chat template when asked to."""

    def tokenize(messages: Messages) -> int:
        path, body, field = _token_question(model, engine, messages)
        answer = ask(origin, path, key, body=body)
        try:
            count = json.loads(answer.body)[field]
        except (ValueError, KeyError, TypeError) as error:
            raise _no_tokens(origin, path, answer) from error
        if answer.status != 200 or not isinstance(count, int):
            raise _no_tokens(origin, path, answer)
        return count

    return tokenize


def _token_question(model: str, engine: str, messages: Messages) -> tuple[str, Mapping[str, Any], str]:
    if engine == "lmdeploy":
        return "/v1/encode", {"input": messages[0]["content"], "do_preprocess": True}, "length"
    return "/tokenize", {"model": model, "messages": messages}, "count"


def _no_tokens(origin: Origin, path: str, answer: Answer) -> ServerError:
    return ServerError(
        f"{origin}{path} answered {answer.status} and counts no tokens, so chat prompts cannot be exact: "
        "use endpoint: completions"
    )
