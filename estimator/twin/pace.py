"""What a clock that drives a simulated engine needs: the steps under way, and how long each takes."""

from __future__ import annotations

from collections import deque

from estimator.twin.cost import StepCost, step_seconds
from estimator.twin.request import Step
from estimator.twin.scheduler import Scheduler


class Pipeline:
    """The steps that were made up and not settled: where two may be, one is made up while one computes."""

    def __init__(self, engine: Scheduler) -> None:
        self._engine = engine
        self._under_way: deque[Step] = deque()

    @property
    def is_busy(self) -> bool:
        """Something computes, or could."""
        return self._engine.has_work or bool(self._under_way)

    def fill(self) -> list[Step]:
        """Makes up as many steps as may be under way; the new ones."""
        made_up: list[Step] = []
        while self._engine.has_work and len(self._under_way) < self._engine.limits.steps_under_way_max:
            made_up.append(self._engine.step())
            self._under_way.append(made_up[-1])
        return made_up

    def oldest(self) -> Step:
        """The step that computes now; it is for the caller to settle. IndexError when there is none."""
        return self._under_way.popleft()


def step_duration_s(cost: StepCost, step: Step) -> float:
    """0 for a step that nobody is in, as when all wait for their last token: it never reaches the GPU."""
    if not step.prefill_tokens + step.decoding:
        return 0.0
    return step_seconds(cost, step.prefill_tokens, step.decoding, step.context_tokens, step.attended_pairs)
