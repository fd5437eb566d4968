"""What every simulated engine offers to the clocks that drive it, and the choice of one by its limits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from estimator.twin.blocks import BlockPool
from estimator.twin.engine import Engine
from estimator.twin.limits import EngineLimits
from estimator.twin.lmdeploy_engine import LmdeployEngine
from estimator.twin.lmdeploy_limits import LmdeployLimits
from estimator.twin.request import Outcome, Prefix, Request, Stats, Step

SchedulerLimits = EngineLimits | LmdeployLimits


class Requests(Protocol):
    """What can be counted and looked through."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Request]: ...


class Scheduler(Protocol):
    """`step()`, wait what it costs, `settle(step)`, again while `has_work`; requests come and go between."""

    @property
    def limits(self) -> SchedulerLimits: ...

    @property
    def running(self) -> Requests: ...

    @property
    def waiting(self) -> Requests: ...

    @property
    def stats(self) -> Stats: ...

    @property
    def pool(self) -> BlockPool: ...

    @property
    def has_work(self) -> bool: ...

    def add(
        self, request_id: str, prompt_tokens: int, max_tokens: int, *, priority: int = 0, prefix: Prefix = ()
    ) -> Request:
        """Raises SpecError, one sentence, for a request that could never finish."""
        ...

    def abort(self, request_id: str) -> bool:
        """Ends a request at once; False when it is not here any more."""
        ...

    def step(self) -> Step:
        """The next forward pass."""
        ...

    def settle(self, step: Step) -> Outcome:
        """Ends it: what it yielded."""
        ...


def new_scheduler(limits: SchedulerLimits) -> Scheduler:
    """vLLM's for EngineLimits, LMDeploy's for LmdeployLimits."""
    return LmdeployEngine(limits) if isinstance(limits, LmdeployLimits) else Engine(limits)
