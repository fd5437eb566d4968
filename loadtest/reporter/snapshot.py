"""A run in few figures, each with its interval: what two runs are compared by and a baseline keeps. Pure."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import stdev
from typing import Any, Final

import numpy as np

from loadtest.columns import NULL, Floats
from loadtest.reporter.buffer import safe_limit
from loadtest.reporter.latency import NEEDED, e2e_s, succeeded, tpot_s, ttft_s
from loadtest.reporter.observation import Quantiles, StageObservation, Window
from loadtest.reporter.verdict import Status, Verdict
from loadtest.request_table import RequestTable
from loadtest.run_folder import Manifest
from loadtest.sequential import design_effect, percentile_interval

FORMAT: Final = 1
PERCENTILES: Final = (50, 95, 99)
LATENCIES: Final = {"ttft": ttft_s, "tpot": tpot_s, "e2e": e2e_s}
BATCHES: Final = 20
T_OF_BATCHES: Final = 2.0930
"""Student's t that leaves 2.5% above, 19 degrees of freedom: one fewer than BATCHES."""

ITEMS_KEPT: Final = 20
"""A longer list of a scenario, such as the lengths of a dataset, is kept as its digest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A value and its 95% interval. None: too few requests to bound it on this side."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One concurrency, in users; `rate_per_s` is None in a closed loop. Figures by name."""

    users: int
    rate_per_s: float | None
    held: bool
    requests: int
    figures: Mapping[str, Figure]


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One run. `n_safe` and `n_max` are brackets: at least `low`, at most `high`; None: no end was seen."""

    format: int = FORMAT
    run_id: str
    created_utc: str
    status: Status
    reason: str
    model: str
    engine: str
    seed: int | None
    scenario: Mapping[str, Any]
    server: Mapping[str, str]
    versions: Mapping[str, str]
    n_safe: Figure
    n_max: Figure
    levels: tuple[Level, ...]


def snapshot(requests: RequestTable, manifest: Manifest, verdict: Verdict) -> Snapshot:
    """Latencies of one level at a time are held in memory."""
    observation = verdict.observation
    windows = {window.index: window for window in observation.windows}
    rates = {stage.index: stage.rate_per_s for stage in manifest.stages}
    n_max, n_safe = _limits(verdict)
    return Snapshot(
        run_id=manifest.run_id,
        created_utc=manifest.created_utc,
        status=verdict.status,
        reason=verdict.reason,
        model=manifest.model,
        engine=manifest.engine,
        seed=manifest.scenario.get("seed"),
        scenario={key: _portable(key, value) for key, value in manifest.scenario.items() if key != "seed"},
        server=dict(manifest.server),
        versions=dict(manifest.versions),
        n_safe=n_safe,
        n_max=n_max,
        levels=tuple(
            _level(stage, requests, windows[stage.index], rates.get(stage.index))
            for stage in observation.stages
        ),
    )


def _portable(key: str, value: Any) -> Any:
    """Small, and the same wherever the scenario lies: a file by its name, a long list by its digest."""
    match value:
        case str() if key == "file":
            return Path(value).name
        case dict():
            return {inner: _portable(inner, part) for inner, part in value.items()}
        case list() if len(value) > ITEMS_KEPT:
            digest = hashlib.sha256(json.dumps(value).encode("ascii")).hexdigest()
            return f"{len(value)} items, sha256 {digest[:16]}"
        case list():
            return [_portable(key, part) for part in value]
    return value


def _limits(verdict: Verdict) -> tuple[Figure, Figure]:
    """N_max lies from the highest level that held to below the first that did not, and N_safe follows."""
    breaks = verdict.observation.breaks
    most = None if breaks is None else max(breaks - 1, verdict.n_max)
    known = [limit for limit in (verdict.n_kv, verdict.n_slots, most) if limit is not None]
    safe_most = safe_limit(*known, buffer_ratio=verdict.buffer_ratio) if known else None
    n_safe = Figure(
        value=verdict.n_safe,
        low=verdict.n_safe,
        high=None if safe_most is None else max(safe_most, verdict.n_safe),
    )
    return Figure(value=verdict.n_max, low=verdict.n_max, high=most), n_safe


def _level(
    stage: StageObservation, requests: RequestTable, window: Window, rate_per_s: float | None
) -> Level:
    figures = {"output_tokens_per_s": _throughput(stage.output_tokens_per_s, requests, window)}
    seen: Mapping[str, Quantiles | None] = {"ttft": stage.ttft, "tpot": stage.tpot, "e2e": stage.e2e}
    for name, quantiles in seen.items():
        if quantiles is None:
            continue
        values = _values(name, requests, window)
        for percentile in PERCENTILES:
            figures[f"{name}_p{percentile}_s"] = quantile_figure(
                getattr(quantiles, f"p{percentile}_s"), values, percentile
            )
    return Level(
        users=stage.users,
        rate_per_s=rate_per_s,
        held=stage.held,
        requests=stage.requests,
        figures=figures,
    )


def _values(name: str, requests: RequestTable, window: Window) -> Floats:
    """Of the good requests that started in the window, in order of start."""
    parts = [
        LATENCIES[name](rows.take(succeeded(rows)))
        for rows in requests.started_in_order(NEEDED, window.settled_ns, window.end_ns)
    ]
    values: Floats = np.concatenate([np.empty(0), *parts])
    known: Floats = values[~np.isnan(values)]
    return known


def quantile_figure(value: float, values: Floats, percentile: int) -> Figure:
    """Requests of one run resemble each other: how much, the row of those above the quantile shows."""
    effect = design_effect((values > value).tolist(), least=1.0)
    interval = percentile_interval(values.tolist(), percentile, design_effect=effect)
    return Figure(value=value, low=interval.low, high=interval.high)


def _throughput(tokens_per_s: float, requests: RequestTable, window: Window) -> Figure:
    """From the means of BATCHES equal parts of the window, which resemble each other little."""
    length_ns = (window.end_ns - window.settled_ns) / BATCHES
    tokens = np.zeros(BATCHES)
    names = ("outcome", "intended_ns", "done_ns", "output_tokens")
    for rows in requests.alive_in(names, window.settled_ns, window.end_ns):
        at_ns = rows["done_ns"]
        counts = succeeded(rows) & (window.settled_ns <= at_ns) & (at_ns < window.end_ns)
        counts &= rows["output_tokens"] != NULL
        batch = ((at_ns[counts] - window.settled_ns) / length_ns).astype(np.int64)
        tokens += np.bincount(
            np.minimum(batch, BATCHES - 1), weights=rows["output_tokens"][counts], minlength=BATCHES
        )
    half = T_OF_BATCHES * _standard_error((tokens / (length_ns / 1e9)).tolist())
    return Figure(value=tokens_per_s, low=max(tokens_per_s - half, 0.0), high=tokens_per_s + half)


def _standard_error(values: Sequence[float]) -> float:
    return stdev(values) / math.sqrt(len(values))
