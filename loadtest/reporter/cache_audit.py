"""Did the prefix cache do work that the scenario meant the engine to do? From its own counters. Pure.

A prompt whose beginning lies in the cache costs neither its prefill nor blocks of its own. Where more of the
prompts was found there than the scenario says they have in common, the limit that was found is too high.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Final

from estimator.spec import Lengths
from loadtest.records import Sample
from loadtest.reporter.looks import looks_in
from loadtest.reporter.observation import Window
from loadtest.scenario import Scenario

HITS_UNPLANNED_RATIO: Final = 0.01
"""So much of the tokens that were looked up may be found beyond the plan."""
PLAN_SLACK: Final = 1.10
"""A plan is a mean over all lengths there are; the requests of one stage are a sample of them."""
STATED_SLACK: Final = 0.05
"""So far from a stated share a level's hits may be, either way: in shares of the prompt tokens."""
TEMPLATE_TOKENS_MAX: Final = 64
"""A chat template begins every prompt alike, before any word of ours: seldom with more than this."""
SHARES: Final = 1000


def planned_hit_ratio(scenario: Scenario) -> float | None:
    """Largest share of the looked-up tokens that the scenario lets be found; None where it does not say.

    What it states itself is believed, and then has a lower bound too. A system prompt has at most as many
    tokens as bytes.
    """
    if scenario.prefix_hit_ratio is not None:
        return scenario.prefix_hit_ratio
    if why_not_judged(scenario) is not None:
        return None
    lengths = scenario.workload.input_tokens
    mean = fmean(_tokens(lengths))
    shared = template = 0.0
    if scenario.shared_prefix is not None:
        prefix = scenario.shared_prefix
        shared = fmean(min(prefix.shared_tokens(tokens), tokens) for tokens in _tokens(lengths))
    if scenario.endpoint == "chat":
        template = min(TEMPLATE_TOKENS_MAX + len((scenario.system or "").encode()), mean)
    return min((shared + template) / mean, 1.0)


def why_not_judged(scenario: Scenario) -> str | None:
    """Why nobody can say how much of its prompts a cache may hold, in a few words; None where one can."""
    if scenario.prefix_hit_ratio is not None:
        return None
    reasons = (
        (
            scenario.session is not None,
            "how much a conversation repeats in one stage is up to the server's pace",
        ),
        (
            scenario.trace is not None and scenario.trace.format == "mooncake",
            "how much of what the trace repeats falls into one stage is up to the server's pace",
        ),
        (
            scenario.dataset is not None and not scenario.dataset.unique,
            "recorded prompts are sent as they are, again and again",
        ),
        (bool(scenario.tools), "how many tokens the tools take, only the server's template knows"),
    )
    return next((reason for applies, reason in reasons if applies), None)


def cache_notes(scenario: Scenario, engine: Sequence[Sample], windows: Sequence[Window]) -> tuple[str, ...]:
    """One sentence where the cache was not judged: how much was found there, for a reader to judge."""
    why = why_not_judged(scenario)
    if why is None:
        return ()
    found = [(ratio, window.label) for window in windows if (ratio := hit_ratio(engine, window)) is not None]
    most = max(found, default=None)
    seen = "" if most is None else f" (at most {most[0]:.0%} of the prompt tokens, at {most[1]})"
    return (f"What the prefix cache held of the prompts{seen} is not judged: {why}.",)


def _tokens(lengths: Lengths) -> list[int]:
    return [lengths.at((i + 0.5) / SHARES) for i in range(SHARES)]


def hit_ratio(engine: Sequence[Sample], window: Window) -> float | None:
    """Share of the tokens looked up in a window that were in the prefix cache; None where it is not shown.

    LMDeploy counts no look-ups: there it is the share of the prompts that it took in.
    """
    for looked_up in ("prefix_cache_queries_total", "prompt_tokens_total"):
        looks = [
            (sample.signals[looked_up], sample.signals["prefix_cache_hits_total"])
            for sample in looks_in(engine, [window])
            if looked_up in sample.signals and "prefix_cache_hits_total" in sample.signals
        ]
        if looks:
            (first_tokens, first_hits), (last_tokens, last_hits) = looks[0], looks[-1]
            tokens = last_tokens - first_tokens
            return (last_hits - first_hits) / tokens if tokens > 0 else None
    return None


def cache_doubts(scenario: Scenario, engine: Sequence[Sample], windows: Sequence[Window]) -> tuple[str, ...]:
    """One sentence for the stage in which the prefix cache flattered the server most, if it did in any."""
    planned = planned_hit_ratio(scenario)
    if planned is None:
        return ()
    found = [(ratio, window.label) for window in windows if (ratio := hit_ratio(engine, window)) is not None]
    if scenario.prefix_hit_ratio is not None:
        return _unlike(planned, found)
    ratio, label = max(found, default=(0.0, ""))
    if ratio <= planned * PLAN_SLACK + HITS_UNPLANNED_RATIO:
        return ()
    meant = f"at most {planned:.0%} were to be" if planned else "no two prompts were to begin alike"
    return (
        "how many fit where the prefix cache does not help: the run is inflated "
        f"({ratio:.0%} of the prompt tokens at {label} were found there, and {meant})",
    )


def _unlike(stated: float, found: Sequence[tuple[float, str]]) -> tuple[str, ...]:
    """The level whose hits were furthest from the stated share, where that is too far either way."""
    if not found:
        return ("whether the prefix cache held what was stated (the server does not count its hits)",)
    ratio, label = max(found, key=lambda one: abs(one[0] - stated))
    if abs(ratio - stated) <= STATED_SLACK:
        return ()
    return (
        f"how many fit with the stated prefix hits ({ratio:.0%} of the prompt tokens at {label} were found, "
        f"{stated:.0%} stated)",
    )
