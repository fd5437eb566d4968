"""The workload of one load process: which request comes next, whole but for its HTTP head.

Pure but for a dataset or trace, whose file is read when the workload is opened.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from loadtest.scenario import Scenario, ScenarioError
from loadtest.scenario.dataset import Dataset, dataset_rows
from loadtest.scenario.dataset_file import DatasetRow
from loadtest.scenario.trace import MOONCAKE_BLOCK_TOKENS
from loadtest.workload.ask import Ask, Asker
from loadtest.workload.images import image_url
from loadtest.workload.plan import Plan, Planner
from loadtest.workload.prompts import (
    TOKEN_IDS,
    ChatWords,
    Messages,
    Symbol,
    any_of,
    joined,
    marked_by,
    nonce,
    request_body,
    room_tokens,
    spelled,
)
from loadtest.workload.recorded import as_sent, with_system

SHARED_KEPT: Final = 512
"""Beginnings that are remembered; others are made again when they come."""


def open_workload(
    scenario: Scenario,
    *,
    model: str,
    run_id: str,
    worker: int,
    workers: int,
    chat: ChatWords | None,
) -> Asker:
    """What worker number `worker` of `workers` asks.

    chat: what the server's tokenizer said; None where token ids are sent. Raises ScenarioError when a file
    it needs cannot be read, or is another than the one that was counted.
    """
    planner = Planner(scenario, worker, workers, floor_tokens(scenario, chat))
    return _Workload(scenario, planner, model, run_id, chat)


def floor_tokens(scenario: Scenario, chat: ChatWords | None) -> int:
    """Rows of a trace can be too short to be unique; drawn lengths were refused if they could be."""
    return room_tokens(chat) if scenario.trace is not None else 1


def check_room(scenario: Scenario, chat: ChatWords | None) -> None:
    """Raises ScenarioError when the shortest prompt has no room for what stands in each of them."""
    inputs, prefix = scenario.input_tokens, scenario.shared_prefix
    if inputs is None:
        return
    images = 0 if scenario.images is None else scenario.images.tokens
    shared = 0 if prefix is None else prefix.tokens or 0
    later = 0 if chat is None else chat.turn_tokens + 1
    needed = max(room_tokens(chat) + shared, later) + images
    if inputs.shortest < needed:
        with_these = f", with {shared} of shared prefix and {images} of images" if shared + images else ""
        raise ScenarioError(
            f"input_tokens can be as short as {inputs.shortest}: "
            f"a unique prompt takes at least {needed} tokens here{with_these}"
        )


def _counted_rows(dataset: Dataset, seed: int) -> Mapping[int, DatasetRow]:
    rows = dataset_rows(dataset, seed)
    if any(one.row not in rows for one in dataset.counted):
        raise ScenarioError(f"{dataset.file} is not the file that was counted: run the preflight again")
    return rows


class _Workload:
    def __init__(
        self, scenario: Scenario, planner: Planner, model: str, run_id: str, chat: ChatWords | None
    ) -> None:
        self._scenario, self._planner, self._model = scenario, planner, model
        self._run_id, self._chat = run_id, chat
        self._rows = {} if scenario.dataset is None else _counted_rows(scenario.dataset, scenario.seed)
        self._shared = lru_cache(maxsize=SHARED_KEPT)(self._new_shared)

    @property
    def keeps_text(self) -> bool:
        session = self._scenario.session
        return session is not None and session.answers == "served"

    def first(self, seq: int) -> Ask:
        plan = self._planner.first(seq)
        session = None if self._scenario.session is None else seq
        return self._ask(plan, self._prompt(plan, seq), session=session, turn=0)

    def following(self, ask: Ask, seq: int, answer: str) -> Ask | None:
        if ask.session is None:
            return None
        said_tokens, turn = ask.input_tokens + ask.output_tokens, ask.turn + 1
        plan = self._planner.following(ask.session, turn, said_tokens, ask.model)
        if plan is None:
            return None
        messages = [*ask.body["messages"], *self._later(plan, turn, answer)]
        return self._ask(plan, messages, session=ask.session, turn=turn)

    def _later(self, plan: Plan, turn: int, answer: str) -> Messages:
        """What turn number `turn` adds: the answer before, and a question in words of ours or as recorded."""
        if plan.row is not None:
            before, asked = self._rows[plan.row].exchanges[turn - 1 : turn + 1]
            said = answer if self.keeps_text else before.answer
            return [{"role": "assistant", "content": said}, {"role": "user", "content": asked.question}]
        assert self._chat is not None
        count = plan.added_tokens - self._chat.turn_tokens - self._image_tokens
        words = any_of(self._chat.words, max(count, 1), plan.rng)
        return [{"role": "assistant", "content": answer}, self._question(words, plan)]

    def _ask(self, plan: Plan, prompt: list[int] | str | Messages, *, session: int | None, turn: int) -> Ask:
        scenario, model = self._scenario, plan.model or self._model
        body = request_body(model, prompt, plan.output_tokens, ignore_eos=scenario.ignores_eos)
        if scenario.tools:
            body["tools"] = list(scenario.tools)
        if scenario.response_format is not None:
            body["response_format"] = scenario.response_format
        return Ask(
            endpoint=scenario.endpoint,
            model=model,
            body={**body, **scenario.extra_body},
            input_tokens=plan.input_tokens,
            output_tokens=plan.output_tokens,
            session=session,
            turn=turn,
            think_s=plan.think_s,
        )

    def _prompt(self, plan: Plan, seq: int) -> list[int] | str | Messages:
        scenario, chat = self._scenario, self._chat
        if plan.row is not None:
            mark = [] if chat is None else marked_by(chat, self._run_id, self._planner.worker, seq)
            return as_sent(self._rows[plan.row], scenario.endpoint, scenario.system, mark)
        if chat is None:
            return self._spelled(TOKEN_IDS, plan.input_tokens, plan, seq)
        count = plan.input_tokens - chat.overhead_tokens - self._image_tokens
        words = self._spelled(chat.words, max(count, 1), plan, seq)
        return with_system([self._question(words, plan)], scenario.system)

    def _spelled(self, alphabet: Sequence[Symbol], count: int, plan: Plan, seq: int) -> list[Symbol]:
        front = self._front(alphabet, plan)
        # what a trace calls alike shall be alike, and nothing else is
        mark = () if plan.blocks else nonce(self._run_id, self._planner.worker, seq, len(alphabet))
        return spelled(alphabet, count, mark, plan.rng, front)

    def _front(self, alphabet: Sequence[Symbol], plan: Plan) -> list[Symbol]:
        if plan.blocks:
            names = [f"block {plan.lap}/{name}" for name in plan.blocks]
            return [one for name in names for one in self._shared(alphabet, name, MOONCAKE_BLOCK_TOKENS)]
        prefix, inputs = self._scenario.shared_prefix, self._scenario.input_tokens
        if prefix is None or inputs is None:
            return []
        longest = prefix.shared_tokens(inputs.longest)
        group = self._shared(alphabet, f"group {plan.rng.randrange(prefix.groups)}", longest)
        return group[: prefix.shared_tokens(plan.input_tokens)]

    def _new_shared(self, alphabet: Sequence[Symbol], name: str, count: int) -> list[Symbol]:
        rng = random.Random(f"{self._scenario.seed}/{self._run_id}/{name}")  # noqa: S311
        return any_of(alphabet, count, rng)

    def _question(self, words: Sequence[str], plan: Plan) -> dict[str, Any]:
        images = self._scenario.images
        if images is None:
            return {"role": "user", "content": joined(words)}
        parts: list[dict[str, Any]] = [{"type": "text", "text": joined(words)}]
        for _ in range(images.count):
            url = image_url(images.width, images.height, plan.rng)
            parts.append({"type": "image_url", "image_url": {"url": url}})
        return {"role": "user", "content": parts}

    @property
    def _image_tokens(self) -> int:
        return 0 if self._scenario.images is None else self._scenario.images.tokens
