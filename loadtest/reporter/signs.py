"""What a stage shows of why it broke: prefix hits, queue growth, two TTFTs, token rate. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any, Final

import numpy as np

from loadtest.columns import NULL, Ints
from loadtest.records import Sample
from loadtest.reporter.latency import succeeded
from loadtest.reporter.looks import looks_in
from loadtest.reporter.observation import FirstTokens, TokenRate, Window
from loadtest.reporter.question import Need, Question, need_of, together
from loadtest.reporter.uneven import uneven
from loadtest.sequential import Slope, theil_sen

LOOKS_MIN: Final = 10
LOOKS_MAX: Final = 120
"""Theil-Sen takes the square of it; a longer window is thinned out evenly."""
FIRST_TOKENS_MIN: Final = 10
BATCHES: Final = 10


def signs(engine: Sequence[Sample], window: Window) -> Question[dict[str, Any]]:
    """The fields of StageObservation that say why rather than whether; None where the rows do not show it."""
    looks = looks_in(engine, [window])
    of_requests = yield from together(first_tokens=_first_tokens(looks), token_rate=_token_rate(window))
    return {
        **of_requests,
        "waiting_growth": _waiting_growth(looks),
        "prefix_hit_ratio": _prefix_hit_ratio(looks),
        "uneven": uneven(looks),
    }


def _waiting_growth(looks: Sequence[Sample]) -> Slope | None:
    points = [(s.at_ns / 1e9, s.signals["waiting"]) for s in looks if "waiting" in s.signals]
    points = points[:: math.ceil(len(points) / LOOKS_MAX) or 1]
    if len(points) < LOOKS_MIN:
        return None
    start_s = points[0][0]
    return theil_sen([at_s - start_s for at_s, _ in points], [value for _, value in points])


def _prefix_hit_ratio(looks: Sequence[Sample]) -> float | None:
    """LMDeploy counts what was found and not what was looked up: that is every prompt token."""
    hits = _rise(looks, "prefix_cache_hits_total")
    asked = _rise(looks, "prefix_cache_queries_total")
    asked = _rise(looks, "prompt_tokens_total") if asked is None else asked
    return hits / asked if hits is not None and asked else None


def _rise(looks: Sequence[Sample], signal: str) -> float | None:
    values = [look.signals[signal] for look in looks if signal in look.signals]
    return values[-1] - values[0] if len(values) > 1 and values[-1] >= values[0] else None


def _first_tokens(looks: Sequence[Sample]) -> Question[FirstTokens | None]:
    """Of the first tokens that came between the first and the last look, whenever they were asked for."""
    seen = [look for look in looks if {"ttft_seconds_sum", "ttft_seconds_count"} <= look.signals.keys()]
    count, spent_s = _rise(seen, "ttft_seconds_count"), _rise(seen, "ttft_seconds_sum")
    if count is None or spent_s is None or count < FIRST_TOKENS_MIN:
        return None
    start_ns, end_ns = seen[0].at_ns, seen[-1].at_ns
    came = waited_ns = 0
    names = frozenset({"outcome", "intended_ns", "first_token_ns"})
    need = Need(names=names, start_ns=start_ns, end_ns=end_ns)
    while (rows := (yield need)) is not None:
        first_ns = rows["first_token_ns"]
        counts = (start_ns < first_ns) & (first_ns <= end_ns) & succeeded(rows)
        came += int(np.count_nonzero(counts))
        waited_ns += int((first_ns - rows["intended_ns"])[counts].sum())
    if came < FIRST_TOKENS_MIN:
        return None
    return FirstTokens(client_s=waited_ns / came / 1e9, server_s=spent_s / count)


def _token_rate(window: Window) -> Question[TokenRate | None]:
    """By batch means: a request's tokens are spread evenly from its first to its last one."""
    edges = np.linspace(window.settled_ns, window.end_ns, BATCHES + 1)
    tokens = np.zeros(BATCHES)
    need = need_of(("first_token_ns", "last_token_ns", "output_tokens"), [window])
    while (rows := (yield need)) is not None:
        first_ns, last_ns, count = rows["first_token_ns"], rows["last_token_ns"], rows["output_tokens"]
        known = (first_ns != NULL) & (last_ns != NULL) & (count != NULL)
        first, last, made = first_ns[known], last_ns[known], count[known]
        tokens += np.diff([_tokens_until(edge_ns, first, last, made) for edge_ns in edges.tolist()])
    if not tokens.any():
        return None
    rates = (tokens * BATCHES / window.window_s).tolist()
    return TokenRate(per_s=fmean(rates), error_per_s=stdev(rates) / math.sqrt(BATCHES))


def _tokens_until(edge_ns: float, first_ns: Ints, last_ns: Ints, made: Ints) -> float:
    is_over = last_ns <= edge_ns
    runs = (first_ns < edge_ns) & ~is_over
    share = (edge_ns - first_ns[runs]) / (last_ns[runs] - first_ns[runs])
    return float(made[is_over].sum() + (share * made[runs]).sum())
