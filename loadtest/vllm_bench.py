"""A run in the words of `vllm bench serve`: the keys of its JSON file and its console block, 50 columns wide.

Source: vllm 0.32, vllm/benchmarks/serve.py, calculate_metrics, benchmark and main_async. Its definitions are
followed where they differ from ours: latency ends with the last token, TPOT counts from the second token
on, percentiles are interpolated, requests that failed are in no figure. ITL quantiles come from counted gaps
(stream_counts.py), within 0.8% of vLLM's own; where these are not whole, they are null and left out of the
block, never estimated.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np

from loadtest.columns import NULL, Array, Columns, joined
from loadtest.records import SUCCESSES, StreamCounts
from loadtest.request_table import RequestTable
from loadtest.run_folder import Manifest
from loadtest.stream_counts import SECOND_NS, Gaps, added_up

BACKENDS: Final = {"completions": "openai", "chat": "openai-chat"}
COLUMNS: Final = (
    "outcome",
    "endpoint",
    "intended_ns",
    "first_token_ns",
    "last_token_ns",
    "done_ns",
    "planned_input_tokens",
    "input_tokens",
    "output_tokens",
    "chunks",
)
METRICS: Final[Mapping[str, tuple[str, str]]] = {
    "ttft": ("TTFT", "Time to First Token"),
    "tpot": ("TPOT", "Time per Output Token (excl. 1st token)"),
    "itl": ("ITL", "Inter-token Latency"),
    "e2el": ("E2EL", "End-to-end Latency"),
}
LABELS: Final[Mapping[str, str]] = {
    "completed": "Successful requests:",
    "failed": "Failed requests:",
    "max_concurrency": "Maximum request concurrency:",
    "duration": "Benchmark duration (s):",
    "total_input_tokens": "Total input tokens:",
    "total_output_tokens": "Total generated tokens:",
    "request_throughput": "Request throughput (req/s):",
    "output_throughput": "Output token throughput (tok/s):",
    "max_output_tokens_per_s": "Peak output token throughput (tok/s):",
    "max_concurrent_requests": "Peak concurrent requests:",
    "total_token_throughput": "Total token throughput (tok/s):",
}
TWO_DECIMALS: Final = frozenset(
    {
        "duration",
        "request_throughput",
        "output_throughput",
        "max_output_tokens_per_s",
        "max_concurrent_requests",
        "total_token_throughput",
    }
)
WIDTH: Final = 50
COVERED_MIN: Final = 0.99


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Which requests: those intended in [start, end), of a stage with so many users. None: the whole run."""

    start_ns: int
    end_ns: int
    users: int


def bench_result(
    requests: RequestTable, streams: Iterable[StreamCounts], manifest: Manifest, scope: Scope | None
) -> dict[str, Any]:
    """The JSON object that `vllm bench serve --save-result` would have written of these requests."""
    parts = (
        requests.columns(*COLUMNS)
        if scope is None
        else requests.started_in(COLUMNS, scope.start_ns, scope.end_ns)
    )
    rows = joined([*parts])
    good = rows.take(rows.among("outcome", SUCCESSES))
    gaps = _whole_gaps(good, streams, scope)
    duration_s = _duration_s(rows)
    tokens = _seen_or(good["output_tokens"], 0)
    total_input, total_output = int(_prompt_tokens(good).sum()), int(tokens.sum())
    endpoint = str(manifest.scenario.get("endpoint") or "completions")
    users = scope.users if scope is not None else _only_users(manifest)
    return {
        "date": _local(manifest),
        "endpoint_type": BACKENDS.get(endpoint, endpoint),
        "backend": BACKENDS.get(endpoint, endpoint),
        "label": "ullage",
        "model_id": manifest.model,
        "tokenizer_id": manifest.model,
        "num_prompts": rows.rows,
        "request_rate": "inf",
        "burstiness": 1.0,
        "max_concurrency": users,
        "duration": duration_s,
        "completed": good.rows,
        "failed": rows.rows - good.rows,
        "total_input_tokens": total_input,
        "total_output_tokens": total_output,
        "request_throughput": _per(good.rows, duration_s),
        "request_goodput": None,
        "output_throughput": _per(total_output, duration_s),
        "total_token_throughput": _per(total_input + total_output, duration_s),
        "max_output_tokens_per_s": None if gaps is None else float(max(gaps.chunks.values(), default=0)),
        "max_concurrent_requests": _peak(good),
        "rtfx": 0.0,
        **dict(_figures(good, tokens)),
        **dict(_gap_figures(good, gaps)),
    }


def bench_json(result: Mapping[str, Any]) -> str:
    return json.dumps(result) + "\n"


def bench_block(result: Mapping[str, Any]) -> str:
    """What `vllm bench serve` prints at its end."""
    lines = [f"{' Serving Benchmark Result ':=^{WIDTH}}"]
    for key, label in LABELS.items():
        if result[key] is not None:
            lines.append(_line(label, result[key], has_decimals=key in TWO_DECIMALS))
    for key, (name, title) in METRICS.items():
        lines.append(f"{title:-^{WIDTH}}")
        figures = {"Mean": f"mean_{key}_ms", "Median": f"median_{key}_ms", "P99": f"p99_{key}_ms"}
        lines += [
            _line(f"{word} {name} (ms):", result[at], has_decimals=True)
            for word, at in figures.items()
            if result[at] is not None
        ]
    return "\n".join([*lines, "=" * WIDTH])


def _line(label: str, value: float, *, has_decimals: bool) -> str:
    return f"{label:<40} {value:<10.2f}" if has_decimals else f"{label:<40} {value:<10}"


def _per(amount: float, duration_s: float) -> float:
    return amount / duration_s if duration_s else 0.0


def _only_users(manifest: Manifest) -> int | None:
    users = {stage.users for stage in manifest.stages}
    return users.pop() if len(users) == 1 else None


def _local(manifest: Manifest) -> str:
    return datetime.fromtimestamp(manifest.wall_ns / 1e9, UTC).strftime("%Y%m%d-%H%M%S")


def _seen_or(values: Array, otherwise: Array | int) -> Array:
    return np.where(values == NULL, otherwise, values)


def _prompt_tokens(rows: Columns) -> Array:
    return _seen_or(rows["input_tokens"], rows["planned_input_tokens"])


def _duration_s(rows: Columns) -> float:
    return (int(rows["done_ns"].max()) - int(rows["intended_ns"].min())) / 1e9 if rows.rows else 0.0


def _ends_ns(good: Columns) -> Array:
    return _seen_or(good["last_token_ns"], good["done_ns"])


def _peak(good: Columns) -> int:
    """Requests that touched the fullest second, counted from the first start."""
    if not good.rows:
        return 0
    start_ns = good["intended_ns"].min()
    first = (good["intended_ns"] - start_ns) // 10**9
    last = (_ends_ns(good) - start_ns) // 10**9
    change = np.bincount(first, minlength=int(last.max()) + 2) - np.bincount(
        last + 1, minlength=int(last.max()) + 2
    )
    return int(np.cumsum(change).max())


def _figures(good: Columns, tokens: Array) -> Iterator[tuple[str, float | None]]:
    """mean, median, std and p99 of each latency, milliseconds; 0 without a value, as vLLM has it."""
    intended_ns, first_ns, ends_ns = good["intended_ns"], good["first_token_ns"], _ends_ns(good)
    began = first_ns != NULL
    ttft_s = (first_ns[began] - intended_ns[began]) / 1e9
    later = began & (tokens > 1)
    tpot_s = (ends_ns[later] - first_ns[later]) / 1e9 / (tokens[later] - 1)
    for key, values in (("ttft", ttft_s), ("tpot", tpot_s), ("e2el", (ends_ns - intended_ns) / 1e9)):
        known = values if len(values) else np.zeros(1)
        yield f"mean_{key}_ms", float(np.mean(known)) * 1000
        yield f"median_{key}_ms", float(np.median(known)) * 1000
        yield f"std_{key}_ms", float(np.std(known)) * 1000
        yield f"p99_{key}_ms", float(np.percentile(known, 99)) * 1000


def _whole_gaps(good: Columns, streams: Iterable[StreamCounts], scope: Scope | None) -> Gaps | None:
    """The counted gaps of the whole seconds in scope; None when they are not those of the rows.

    A run made before gaps were counted has none, a killed worker's last seconds are missing.
    """
    if not good.rows:
        return Gaps()
    start_ns, end_ns = (
        (int(good["intended_ns"].min()), int(good["intended_ns"].max()) + SECOND_NS)
        if scope is None
        else (scope.start_ns + SECOND_NS - 1, scope.end_ns)
    )
    first_second, end_second = start_ns // SECOND_NS, end_ns // SECOND_NS
    seconds = good["intended_ns"] // SECOND_NS
    covered = (first_second <= seconds) & (seconds < end_second)
    gaps = added_up(streams, first_second, end_second)
    expected = int(good["chunks"][covered].sum())
    return gaps if expected and gaps.chunks.total() >= COVERED_MIN * expected else None


def _gap_counts(good: Columns) -> Array:
    return np.asarray((good["chunks"] - 1).clip(0))


def _gap_figures(good: Columns, gaps: Gaps | None) -> Iterator[tuple[str, float | None]]:
    """As `_figures`, for the gaps between chunks; the mean needs no counts."""
    count = int(_gap_counts(good).sum())
    began = good["first_token_ns"] != NULL
    spent_ns = int((_ends_ns(good)[began] - good["first_token_ns"][began]).sum())
    yield "mean_itl_ms", spent_ns / count / 1e6 if count else 0.0
    names = ("median_itl_ms", "std_itl_ms", "p99_itl_ms")
    if gaps is None:
        yield from dict.fromkeys(names).items()
        return
    median_s, p99_s = gaps.quantiles_s(0.5, 0.99)
    yield from zip(names, (median_s * 1000, gaps.std_s * 1000, p99_s * 1000), strict=True)
