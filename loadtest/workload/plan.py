"""How long each request is and whom it asks, before a word of it is chosen. Pure, and cheap to look ahead.

What a request is follows from the seed, the worker and its number; what a later turn of a conversation is,
from the conversation's first number and the turn: whoever else asks meanwhile changes nothing.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import accumulate

from estimator.spec import Lengths
from loadtest.made_often import made_often
from loadtest.scenario import Scenario
from loadtest.scenario.dataset import Counted
from loadtest.scenario.trace import TraceRow, trace_rows


@made_often
class Plan:
    """One request: its lengths in tokens, and its own random numbers for the words."""

    input_tokens: int
    output_tokens: int
    rng: random.Random
    added_tokens: int
    """Of the prompt, what was not said before: all of it, but for a later turn."""
    model: str | None = None
    """None is the model that is served."""
    think_s: float = 0.0
    row: int | None = None
    """Number of the dataset's row that it is."""
    blocks: tuple[int, ...] = ()
    """Names of what its prompt begins with, where a trace says so."""
    lap: int = 0
    """How often the dataset or trace had been sent whole before."""


class Planner:
    """The plans of worker number `worker` of `workers`. floor_tokens: shorter prompts are made so long."""

    def __init__(self, scenario: Scenario, worker: int, workers: int, floor_tokens: int = 1) -> None:
        self.worker = worker
        self._scenario, self._workers = scenario, workers
        self._floor = floor_tokens
        self._names = [model.name for model in scenario.models]
        self._edges = list(accumulate(model.share for model in scenario.models))
        self._trace = () if scenario.trace is None else trace_rows(scenario.trace)
        self._rows = [] if scenario.dataset is None else list(scenario.dataset.counted)
        random.Random(f"rows {scenario.seed}").shuffle(self._rows)  # noqa: S311

    def first(self, seq: int) -> Plan:
        """Request number `seq` of this worker, which stands alone or opens a conversation."""
        rng = self._rng(str(seq))
        place = self._place(seq)
        if self._trace:
            return self._of_trace(*divmod(place, len(self._trace)), rng)
        if self._rows:
            return self._of_dataset(*divmod(place, len(self._rows)), rng)
        prompt, answer = self._drawn(rng)
        return Plan(
            input_tokens=max(prompt, self._floor),
            added_tokens=max(prompt, self._floor),
            output_tokens=answer,
            model=self._model(rng),
            rng=rng,
        )

    def following(self, session: int, turn: int, context_tokens: int, model: str | None) -> Plan | None:
        """Turn number `turn`, from 0, of the conversation that request `session` opened; None if it is over.

        context_tokens: all that was said before, prompt and answer.
        """
        spec = self._scenario.session
        if spec is None:
            return None
        if self._rows:
            return self._of_conversation(session, turn, model)
        assert spec.turns is not None
        if turn >= spec.turns.at(self._rng(f"{session}/turns").random()):
            return None
        rng = self._rng(f"{session}/{turn}")
        added, answer = self._drawn(rng)
        if not spec.has_room(context_tokens + added + answer):
            return None
        return Plan(
            input_tokens=context_tokens + added,
            added_tokens=added,
            output_tokens=answer,
            model=model,
            think_s=spec.think_s.drawn_s(rng),
            rng=rng,
        )

    def conversation(self, seq: int) -> Iterator[Plan]:
        """The request of that number and, where it opens a conversation, all its turns."""
        plan: Plan | None = self.first(seq)
        turn = 0
        while plan is not None:
            yield plan
            turn += 1
            plan = self.following(seq, turn, plan.input_tokens + plan.output_tokens, plan.model)

    def _rng(self, what: str) -> random.Random:
        return random.Random(f"{self._scenario.seed}/{self.worker}/{what}")  # noqa: S311  (a load, no secret)

    def _drawn(self, rng: random.Random) -> tuple[int, int]:
        inputs, outputs = self._scenario.input_tokens, self._scenario.output_tokens
        assert isinstance(inputs, Lengths)
        assert isinstance(outputs, Lengths)
        return inputs.at(rng.random()), outputs.at(rng.random())

    def _model(self, rng: random.Random) -> str | None:
        return rng.choices(self._names, cum_weights=self._edges)[0] if self._names else None

    def _of_trace(self, lap: int, place: int, rng: random.Random) -> Plan:
        row: TraceRow = self._trace[place]
        return Plan(
            input_tokens=max(row.input_tokens, self._floor),
            added_tokens=max(row.input_tokens, self._floor),
            output_tokens=row.output_tokens,
            model=self._model(rng),
            rng=rng,
            blocks=row.blocks,
            lap=lap,
        )

    def _of_conversation(self, session: int, turn: int, model: str | None) -> Plan | None:
        """A later turn as the dataset has it: its answers may be of other lengths than those before it."""
        spec, row = self._scenario.session, self._rows[self._place(session) % len(self._rows)]
        if spec is None or turn >= len(row.turns):
            return None
        rng = self._rng(f"{session}/{turn}")
        prompt, answer = row.turns[turn]
        return Plan(
            input_tokens=prompt,
            added_tokens=max(0, prompt - sum(row.turns[turn - 1])),
            output_tokens=answer,
            model=model,
            think_s=spec.think_s.drawn_s(rng),
            rng=rng,
            row=row.row,
        )

    def _place(self, seq: int) -> int:
        """Where request or conversation number `seq` of this worker stands among those of all workers."""
        return seq * self._workers + self.worker

    def _of_dataset(self, lap: int, place: int, rng: random.Random) -> Plan:
        row: Counted = self._rows[place]
        return Plan(
            input_tokens=row.input_tokens,
            added_tokens=row.input_tokens,
            output_tokens=row.output_tokens,
            model=self._model(rng),
            rng=rng,
            row=row.row,
            lap=lap,
        )
