"""Measured steps -> the coefficients of the roofline (estimator/twin/cost.py), by least squares.

Every coefficient is 0 or more, and the longer of compute and memory counts; so the fit settles which of the
two each step was bound by, solves, and looks again until nothing changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Final

from estimator.spec import SpecError
from estimator.twin.cost import FrontEndCost, ServerCost, StepCost, step_seconds

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    Floats = NDArray[numpy.float64]

NAMES: Final = (
    "fixed_s",
    "sequence_s",
    "compute_s_per_token",
    "attention_s_per_pair",
    "weights_s",
    "context_s_per_token",
)
ROUNDS_MAX: Final = 20
CPU_ROWS_MIN: Final = 8
SPREAD_MIN: Final = 0.10
"""A fit is not trusted to be closer than this, whatever its residuals: see docs/validation/vllm-cpu.md."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSeen:
    """What steps of one kind held on average, and the seconds one of them took."""

    prefill_tokens: int
    decoding: int
    context_tokens: int
    attended_pairs: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuSeen:
    """Processor seconds of the API server between two looks, and what it did meanwhile."""

    requests: int
    steps: int
    chunks: int
    cpu_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontEndSeen:
    """request_s: what a lone request spends outside the engine."""

    request_s: float
    cpu: tuple[CpuSeen, ...] = ()


def fit_server_cost(steps: Sequence[StepSeen], front_end: FrontEndSeen, source: str) -> ServerCost:
    """Raises SpecError when fewer steps were seen than two kinds, or none that decodes."""
    cost = fit_step_cost(steps)
    ratios = [step.seconds / predicted_s(cost, step) for step in steps]
    return ServerCost(
        step=cost,
        front_end=fit_front_end(front_end),
        low_factor=min(1.0 / (1.0 + SPREAD_MIN), *ratios),
        high_factor=max(1.0 + SPREAD_MIN, *ratios),
        source=source,
    )


def predicted_s(cost: StepCost, step: StepSeen) -> float:
    return step_seconds(cost, step.prefill_tokens, step.decoding, step.context_tokens, step.attended_pairs)


def fit_step_cost(steps: Sequence[StepSeen]) -> StepCost:
    """Least squares of relative errors. Raises SpecError when the steps cannot tell the terms apart."""
    import numpy as np

    decodes = [step for step in steps if step.decoding]
    if len(decodes) < 2 or len(steps) - len(decodes) < 2:
        raise SpecError("a step cost needs at least two kinds of decoding steps and two lengths of prompt")
    if any(step.seconds <= 0.0 for step in steps):
        raise SpecError("a step took no time: the clock is broken")
    seconds = np.array([step.seconds for step in steps])
    compute_bound = np.array([step.prefill_tokens > 0 for step in steps])
    best: tuple[float, StepCost] | None = None
    for _ in range(ROUNDS_MAX):
        rows = np.array([_row(step, bool(bound)) for step, bound in zip(steps, compute_bound, strict=True)])
        found = _least_squares(rows / seconds[:, None], np.ones(len(steps)))
        cost = StepCost(**dict(zip(NAMES, found.tolist(), strict=True)))
        error = sum((predicted_s(cost, step) / step.seconds - 1.0) ** 2 for step in steps)
        if best is None or error < best[0]:
            best = (error, cost)
        again = np.array([_is_compute_bound(cost, step) for step in steps])
        if (again == compute_bound).all():
            break
        compute_bound = again
    assert best is not None
    return best[1]


def fit_front_end(seen: FrontEndSeen) -> FrontEndCost:
    """Processor time of a request, of a wake-up for a step and of a chunk, beside what the looks took."""
    import numpy as np

    if len(seen.cpu) < CPU_ROWS_MIN:
        return FrontEndCost(request_s=seen.request_s)
    rows = np.array([(1.0, look.requests, look.steps, look.chunks) for look in seen.cpu])
    found = _least_squares(rows, np.array([look.cpu_s for look in seen.cpu])).tolist()
    return FrontEndCost(
        request_s=seen.request_s,
        request_cpu_s=min(found[1], seen.request_s),
        step_s=found[2],
        chunk_s=found[3],
    )


def _row(step: StepSeen, compute_bound: bool) -> tuple[float, ...]:
    tokens = step.prefill_tokens + step.decoding
    if compute_bound:
        return (1.0, step.decoding, tokens, step.attended_pairs, 0.0, 0.0)
    return (1.0, step.decoding, 0.0, 0.0, 1.0, step.context_tokens)


def _is_compute_bound(cost: StepCost, step: StepSeen) -> bool:
    compute_s = (step.prefill_tokens + step.decoding) * cost.compute_s_per_token
    compute_s += step.attended_pairs * cost.attention_s_per_pair
    return compute_s >= cost.weights_s + step.context_tokens * cost.context_s_per_token


def _least_squares(rows: Floats, wanted: Floats) -> Floats:
    """The best solution without a negative: of the best for each choice of columns, the best that has none.

    That is exact; with six columns there are 64 choices.
    """
    import numpy as np

    columns = rows.shape[1]
    best, best_error = np.zeros(columns), float(wanted @ wanted)
    for count in range(1, columns + 1):
        for chosen in combinations(range(columns), count):
            part = rows[:, chosen]
            solution = np.linalg.lstsq(part, wanted, rcond=None)[0]
            error = float(np.sum((part @ solution - wanted) ** 2))
            if (solution >= 0.0).all() and error < best_error * (1.0 - 1e-9):
                best_error = error
                best = np.zeros(columns)
                best[list(chosen)] = solution
    return best
