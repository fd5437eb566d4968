"""What a stage shows of why it broke: prefix hits, queue growth, two TTFTs, token rate. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any, Final

import numpy as np

from loadtest.columns import NULL
from loadtest.records import Sample
from loadtest.reporter.latency import succeeded, ttft_s
from loadtest.reporter.observation import FirstTokens, Window
from loadtest.reporter.uneven import uneven
from loadtest.request_table import RequestTable
from loadtest.sequential import Slope, theil_sen

LOOKS_MIN: Final = 10
LOOKS_MAX: Final = 120
"""Theil-Sen takes the square of it; a longer window is thinned out evenly."""
FIRST_TOKENS_MIN: Final = 10
BATCHES: Final = 10


def signs(requests: RequestTable, engine: Sequence[Sample], window: Window) -> dict[str, Any]:
    """The fields of StageObservation that say why rather than whether; None where the rows do not show it."""
    looks = [s for s in engine if window.settled_ns <= s.at_ns < window.end_ns]
    return {
        "waiting_growth": _waiting_growth(looks),
        "prefix_hit_ratio": _prefix_hit_ratio(looks),
        "first_tokens": _first_tokens(requests, looks),
        "uneven": uneven(looks),
        "output_tokens_per_s_error": _token_rate_error(requests, window),
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


def _first_tokens(requests: RequestTable, looks: Sequence[Sample]) -> FirstTokens | None:
    """Of the first tokens that came between the first and the last look, whenever they were asked for."""
    seen = [look for look in looks if {"ttft_seconds_sum", "ttft_seconds_count"} <= look.signals.keys()]
    count, spent_s = _rise(seen, "ttft_seconds_count"), _rise(seen, "ttft_seconds_sum")
    if count is None or spent_s is None or count < FIRST_TOKENS_MIN:
        return None
    start_ns, end_ns = seen[0].at_ns, seen[-1].at_ns
    waits_s: list[float] = []
    for rows in requests.alive_in(("outcome", "intended_ns", "first_token_ns", "done_ns"), start_ns, end_ns):
        came = (start_ns < rows["first_token_ns"]) & (rows["first_token_ns"] <= end_ns)
        waits_s += ttft_s(rows.take(came & succeeded(rows))).tolist()
    if len(waits_s) < FIRST_TOKENS_MIN:
        return None
    return FirstTokens(client_s=fmean(waits_s), server_s=spent_s / count)


def _token_rate_error(requests: RequestTable, window: Window) -> float | None:
    """By batch means: a request's tokens are spread evenly from its first to its last one."""
    edges = np.linspace(window.settled_ns, window.end_ns, BATCHES + 1)
    tokens = np.zeros(BATCHES)
    names = ("intended_ns", "first_token_ns", "last_token_ns", "done_ns", "output_tokens")
    for rows in requests.alive_in(names, window.settled_ns, window.end_ns):
        first_ns, last_ns, count = rows["first_token_ns"], rows["last_token_ns"], rows["output_tokens"]
        known = (first_ns != NULL) & (last_ns != NULL) & (count != NULL)
        first, last, made = first_ns[known], last_ns[known], count[known]
        share = np.clip((edges - first[:, None]) / np.maximum(last - first, 1)[:, None], 0.0, 1.0)
        tokens += (np.diff(share, axis=1) * made[:, None]).sum(axis=0)
    if not tokens.sum():
        return None
    return stdev(tokens.tolist()) * BATCHES / window.window_s / math.sqrt(BATCHES)
