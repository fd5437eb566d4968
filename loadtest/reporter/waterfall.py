"""From the textbook's estimate to the observed limit, term by term, and the terms sum exactly. Pure.

Every step is a level: how many requests there would be if all up to here were so. A term is the difference of
two levels, and levels are kept in whole tenths of a request: what is printed adds up as well. A step whose
inputs nobody knows is left out, and what no step explains is a term of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from typing import Final, Literal

from loadtest.reporter.verdict import Verdict
from loadtest.reporter.waterfall_steps import (
    Step,
    TermName,
    at_max_model_len,
    length_steps,
    observed_steps,
    pool_figure,
    textbook_steps,
)
from loadtest.textbook_facts import TextbookFacts

TENTH: Final = Decimal("0.1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One reason: how many requests it adds or takes, the figures it stands on, and what they mean."""

    name: TermName
    requests: Decimal
    figure: str
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Waterfall:
    """start + the sum of the terms == observed, to the tenth of a request."""

    start_name: Literal["textbook", "pool"]
    start: Decimal
    start_figure: str
    terms: tuple[Term, ...]
    observed: int
    is_lower_bound: bool


def waterfall_of(verdict: Verdict, facts: TextbookFacts | None = None) -> Waterfall | None:
    """None where nothing was predicted, no stage was judged or the run cannot be judged."""
    prediction, observation = verdict.prediction, verdict.observation
    if prediction is None or not observation.stages or observation.wall.name == "invalid":
        return None
    at_max, engines = at_max_model_len(prediction), prediction.pool.engines
    if facts is None:
        first = Step(name="blocks", level=at_max, figure=pool_figure(prediction), sentence="")
        steps = [*length_steps(prediction)]
    else:
        of_one = textbook_steps(facts, prediction, at_max / engines)
        first, *steps = (replace(step, level=engines * step.level) for step in of_one)
        steps += length_steps(prediction)
    steps += observed_steps(prediction, observation, steps[-1].level)
    return fold(
        first,
        steps,
        start_name="pool" if facts is None else "textbook",
        observed=observation.n_max,
        is_lower_bound=verdict.is_lower_bound,
    )


def fold(
    first: Step,
    steps: Sequence[Step],
    *,
    start_name: Literal["textbook", "pool"],
    observed: int,
    is_lower_bound: bool = False,
) -> Waterfall:
    """Levels -> terms, and the rest to `observed` as the last one."""
    level = start = in_tenths(first.level)
    terms = []
    for step in steps:
        after = in_tenths(step.level)
        terms.append(Term(name=step.name, requests=after - level, figure=step.figure, sentence=step.sentence))
        level = after
    rest = Decimal(observed) - level
    terms.append(Term(name="unexplained", requests=rest, figure="the rest", sentence=_unexplained(rest)))
    return Waterfall(
        start_name=start_name,
        start=start,
        start_figure=first.figure,
        terms=tuple(terms),
        observed=observed,
        is_lower_bound=is_lower_bound,
    )


def in_tenths(level: Fraction) -> Decimal:
    return Decimal(round(level * 10)) * TENTH


def _unexplained(rest: Decimal) -> str:
    if not rest:
        return "nothing is left over"
    return f"{'more' if rest > 0 else 'fewer'} than the figures above explain"
