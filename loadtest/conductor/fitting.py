"""The scenario as one server can be asked it: words of one token, datasets counted, traces cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from loadtest.conductor.local_tokenizer import LocalTokenizer
from loadtest.conductor.server_facts import ServedModel
from loadtest.conductor.tokenizer import Counting
from loadtest.scenario import Scenario, ScenarioError
from loadtest.scenario.dataset import counted
from loadtest.scenario.dataset_file import DatasetRow
from loadtest.scenario.trace import fitted
from loadtest.workload.ask import Ask
from loadtest.workload.asker import check_room
from loadtest.workload.prompts import (
    ChatWords,
    Messages,
    Tokenize,
    calibrate,
    chat_messages,
    joined,
    marked_by,
    turn_tokens,
)
from loadtest.workload.recorded import as_sent, with_system


def words_for(scenario: Scenario, server: Counting) -> ChatWords | None:
    """What the prompts of this scenario are spelled with. Raises PlainError where they cannot be exact."""
    dataset = scenario.dataset
    if dataset is None and scenario.endpoint != "chat":
        if server.engine == "lmdeploy":  # it would take each token id for a prompt of its own
            raise ScenarioError("LMDeploy takes no token ids as a prompt: set endpoint: chat in the scenario")
        check_room(scenario, None)
        return None
    if dataset is not None and not dataset.unique:
        return None
    tokenize = counter_of(scenario, server)
    if scenario.endpoint != "chat":
        return calibrate(tokenize, joined)

    def opening(words: Sequence[str]) -> Messages:
        return with_system(chat_messages(words), scenario.system)

    words = calibrate(tokenize, opening)
    if scenario.session is not None and dataset is None:
        words = replace(words, turn_tokens=turn_tokens(tokenize, words, opening(words.words[:8])))
    check_room(scenario, words)
    return words


def counter_of(scenario: Scenario, server: Counting) -> Tokenize:
    """The scenario's own tokenizer counts, where it names one. Raises TokenizerError where it cannot."""
    if scenario.tokenizer is None:
        return server.counter(scenario.tools)
    own = LocalTokenizer(path=scenario.tokenizer, model=server.model, engine=server.engine)
    return own.counter(scenario.tools)


def fitted_to(scenario: Scenario, server: Counting, served: Sequence[ServedModel]) -> Scenario:
    """The scenario as this server can be asked it: its dataset counted, its trace cut where that is allowed.

    Raises ScenarioError for a model that is not served, and for requests that are too long.
    """
    limits = {model.name: model.max_model_len for model in served}
    for one in scenario.models:
        if one.name not in limits:
            raise ScenarioError(f"models: {one.name!r} is not served; served are {', '.join(limits)}")
    asked = [one.name for one in scenario.models] or [server.model]
    known = [limit for name in asked if (limit := limits.get(name)) is not None]
    max_model_len = min(known, default=None)
    if scenario.trace is not None and max_model_len is not None:
        return replace(scenario, trace=fitted(scenario.trace, max_model_len))
    if scenario.dataset is not None:
        return _counted(scenario, server, max_model_len)
    return scenario


def example_tokens(scenario: Scenario, server: Counting, example: Ask) -> int:
    """What is counted in a request's prompt, images left out."""
    prompt = example.body.get("prompt", example.body.get("messages"))
    assert prompt is not None
    return counter_of(scenario, server)(prompt)


def _counted(scenario: Scenario, server: Counting, max_model_len: int | None) -> Scenario:
    assert scenario.dataset is not None
    tokenize, words = counter_of(scenario, server), words_for(scenario, server)
    mark = () if words is None else marked_by(words, "", 0, 0)  # any nonce: all have the same length

    def count_prompt(row: DatasetRow) -> int:
        return tokenize(as_sent(row, scenario.endpoint, scenario.system, mark))

    def count_answer(text: str) -> int:
        return max(1, tokenize(text))

    dataset = counted(
        scenario.dataset,
        scenario.seed,
        scenario.output_tokens,
        scenario.session,
        count_prompt=count_prompt,
        count_answer=count_answer,
    )
    return replace(scenario, dataset=dataset.fitted(max_model_len))
