"""A step cost brought in line with what a load showed of it, and carried over to another server.

A finished run shows mean steps at a few concurrencies. That is too little for six coefficients, so two
factors are fitted to a cost that is known in shape: what every step pays, and what grows with the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Final

from estimator.spec import SpecError
from estimator.twin.cost import ServerCost, StepCost, scaled

SPREAD_MIN: Final = 1.5
"""Largest over smallest batch, from which on two factors can be told apart."""
FACTOR_MAX: Final = 20.0
"""Two factors further than this from 1 have fitted noise: one is used instead."""
ROUNDS_MAX: Final = 20
DETERMINANT_MIN: Final = 1e-4
"""Of the squares' product: below it the levels differ in size alone."""
PAID_BY_ALL: Final = ("fixed_s", "weights_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelSeen:
    """One concurrency without queue or preemption: means of requests, tokens and seconds."""

    running: float
    prompt_tokens: float
    """Computed, so without what the prefix cache held."""
    context_tokens: float
    """Cached tokens of one running request, halfway through its answer."""
    requests_per_s: float
    step_s: float
    """Time per output token: what a step took, those that also prefilled included."""

    @property
    def kinds(self) -> tuple[tuple[float, float], ...]:
        """(share of the steps, prompt tokens in them): a prompt is computed in a step of its own."""
        prompts = self.requests_per_s * self.step_s
        if prompts >= 1.0:
            return ((1.0, prompts * self.prompt_tokens),)
        return ((1.0 - prompts, 0.0), (prompts, self.prompt_tokens))


def mean_step_s(cost: StepCost, level: LevelSeen) -> float:
    """Seconds of the level's mean step at this cost."""
    return sum(share * _step_s(cost, level, prompt) for share, prompt in level.kinds)


def fit_to_levels(base: ServerCost, levels: Sequence[LevelSeen], source: str) -> ServerCost:
    """`base`, scaled to the levels; its range is how far they then lie apart from it.

    Raises SpecError without a level.
    """
    if not levels:
        raise SpecError("no level without queue and preemption was seen, so what a step costs is not known")
    step = _two_factors(base.step, levels) or scaled(base.step, _one_factor(base.step, levels))
    ratios = [level.step_s / mean_step_s(step, level) for level in levels]
    return ServerCost(
        step=step,
        front_end=base.front_end,
        low_factor=min(1.0, *ratios),
        high_factor=max(1.0, *ratios),
        source=source,
    )


def carried_over(known: ServerCost, prior: ServerCost, prior_there: ServerCost) -> ServerCost:
    """The cost of another server: each term changes as the data sheets' roofline says it does.

    prior and prior_there: of the server that is known and of the other one. The front end stays.
    """
    terms = {}
    for item in fields(StepCost):
        own, here, there = (getattr(cost.step, item.name) for cost in (known, prior, prior_there))
        terms[item.name] = own * there / here if here else own + there
    return replace(known, step=StepCost(**terms))


def _step_s(cost: StepCost, level: LevelSeen, prompt_tokens: float) -> float:
    sequences_s, arithmetic_s, reading_s = _terms(cost, level, prompt_tokens)
    return cost.fixed_s + max(arithmetic_s, cost.weights_s + reading_s) + sequences_s


def _one_factor(cost: StepCost, levels: Sequence[LevelSeen]) -> float:
    """Least squares of relative errors."""
    ratios = [mean_step_s(cost, level) / level.step_s for level in levels]
    return sum(ratios) / sum(ratio * ratio for ratio in ratios)


def _two_factors(cost: StepCost, levels: Sequence[LevelSeen]) -> StepCost | None:
    """None where the levels do not tell the two apart."""
    batches = [level.running for level in levels]
    if max(batches) < SPREAD_MIN * min(batches):
        return None
    found = cost
    for _ in range(ROUNDS_MAX):  # which of compute and memory counts depends on the factors
        factors = _solved([_parts(cost, found, level) for level in levels])
        if factors is None or not all(1 / FACTOR_MAX < factor < FACTOR_MAX for factor in factors):
            return None
        again = _with_factors(cost, *factors)
        if again == found:
            break
        found = again
    return found


def _with_factors(cost: StepCost, paid_by_all: float, growing: float) -> StepCost:
    return StepCost(
        **{
            item.name: getattr(cost, item.name) * (paid_by_all if item.name in PAID_BY_ALL else growing)
            for item in fields(StepCost)
        }
    )


def _parts(cost: StepCost, found: StepCost, level: LevelSeen) -> tuple[float, float]:
    """Of the level's mean step at `cost`, in shares of what it took: what all steps pay, and what grows.

    Whether a kind of step waits for its arithmetic or for its memory is decided at `found`.
    """
    paid = grows = 0.0
    for share, prompt in level.kinds:
        _, arithmetic_s, reading_s = _terms(found, level, prompt)
        sequences_s, arithmetic_here_s, reading_here_s = _terms(cost, level, prompt)
        if arithmetic_s >= found.weights_s + reading_s:
            paid += share * cost.fixed_s
            grows += share * (sequences_s + arithmetic_here_s)
        else:
            paid += share * (cost.fixed_s + cost.weights_s)
            grows += share * (sequences_s + reading_here_s)
    return paid / level.step_s, grows / level.step_s


def _terms(cost: StepCost, level: LevelSeen, prompt_tokens: float) -> tuple[float, float, float]:
    """Seconds of a step: sequences, arithmetic, and the context it reads."""
    arithmetic_s = (prompt_tokens + level.running) * cost.compute_s_per_token
    arithmetic_s += prompt_tokens * level.prompt_tokens / 2 * cost.attention_s_per_pair
    reading_s = level.running * level.context_tokens * cost.context_s_per_token
    return level.running * cost.sequence_s, arithmetic_s, reading_s


def _solved(rows: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    """The two factors that bring every row's sum nearest to 1; None where they are one and the same."""
    paid, grows = [row[0] for row in rows], [row[1] for row in rows]
    pp, gg = sum(one * one for one in paid), sum(one * one for one in grows)
    pg = sum(one * other for one, other in zip(paid, grows, strict=True))
    determinant = pp * gg - pg * pg
    if determinant <= DETERMINANT_MIN * pp * gg:
        return None
    p, g = sum(paid), sum(grows)
    return (p * gg - g * pg) / determinant, (g * pp - p * pg) / determinant
