"""Our own Prometheus metrics: how the run at hand stands, as metric families; what is not known is absent.

Names are base units under one prefix, labels a closed set: no prompt, no error text, no request is a label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from loadtest.live_counts import LiveCounts, Spread, Timing

PREFIX: Final = "llm_loadtest_"
MODEL_LABELS: Final = ("model_name", "engine_kind")
"""`model_name` as vLLM says it, so that one dashboard variable drives its metrics and ours."""

GAUGES: Final[Mapping[str, str]] = {
    "step_index": "Stage of the plan that is held, from 0.",
    "target_concurrency": "Users the stage sets; in an open loop, how many requests may be in flight. "
    "0 when no load is held.",
    "target_request_rate": "Open loop: requests that begin each second.",
    "in_flight_requests": "Requests between intent and end, in all load processes.",
    "backlog_requests": "Open loop: arrivals that are due and that no user was free to take yet.",
    "workers": "Load processes that have reported.",
    "predicted_max_concurrency": "Requests that fit at once by prediction, in KV cache and slots.",
    "predicted_guaranteed_concurrency": "Concurrent requests at their longest that fit in the KV cache.",
    "predicted_saturation_concurrency": "Mean running requests by prediction when the KV cache is full.",
    "predicted_slots_concurrency": "Slots of the server (max_num_seqs).",
    "predicted_kv_cache_usage_ratio": "Predicted mean share of the KV cache that the stage's users hold.",
    "observed_max_concurrency": "Highest concurrency that held in this run.",
    "safe_limit_concurrency": "The limit signed off: of the smallest limit what the buffer leaves. "
    "Absent where nothing was signed.",
}
COUNTERS: Final[Mapping[str, str]] = {
    "good_requests": "Requests that succeeded and kept every limit of the scenario.",
    "prompt_tokens": "Prompt tokens of ended requests by the server's usage.",
    "output_tokens": "Output tokens of ended requests by the server's usage.",
    "due_arrivals": "Open loop: arrivals that have come due.",
    "unsent_arrivals": "Open loop: arrivals that no user was free to take before their stage ended.",
}
HISTOGRAMS: Final[Mapping[Timing, tuple[str, str]]] = {
    "ttft": ("request_ttft_seconds", "Intended send to first token, of requests that succeeded."),
    "tpot": ("request_tpot_seconds", "Time per output token after the first chunk, of those that succeeded."),
    "itl": ("inter_token_latency_seconds", "Gaps between chunks, of requests that succeeded."),
    "e2e": ("request_duration_seconds", "Intended send to end, of requests that succeeded."),
    "lateness": ("schedule_lag_seconds", "How late this client itself sent, of all requests that were sent."),
}
WORKER_GAUGES: Final[Mapping[str, tuple[str, str]]] = {
    "client_users": ("worker_users", "Users alive in a load process."),
    "client_in_flight": ("worker_in_flight_requests", "Requests of a load process between intent and end."),
    "client_cpu_ratio": ("worker_cpu_usage_ratio", "CPU of a load process, 1 is one core."),
    "client_rss_bytes": ("worker_resident_memory_bytes", "Resident memory of a load process."),
    "client_loop_lag_max_s": ("worker_loop_lag_seconds", "Worst lateness of a timer in its last second."),
    "client_gc_pause_max_s": ("worker_gc_pause_seconds", "Longest garbage collection in its last second."),
    "client_steal_ratio": (
        "worker_cpu_steal_ratio",
        "Of its machine's processor time, what its hypervisor took.",
    ),
    "client_cpu_wait_ratio": (
        "worker_cpu_wait_ratio",
        "Of its last second, what a thread of it was ready for and had no processor.",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFigures:
    """One look at the run. Values are by the names of GAUGES and COUNTERS; one that is not known is left out.

    `workers` are the signals of the load processes, by their label.
    """

    run_id: str
    model: str
    engine: str
    target: str
    versions: Mapping[str, str]
    gauges: Mapping[str, float]
    counters: Mapping[str, float]
    counts: LiveCounts
    scrape_errors: int
    workers: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


class RunPage(Collector):
    """For a prometheus_client registry; `look` gives None while no run has begun."""

    def __init__(self, look: Callable[[], RunFigures | None]) -> None:
        self._look = look

    def describe(self) -> Iterable[Metric]:
        """Nothing, so that registering does not look."""
        return ()

    def collect(self) -> Iterator[Metric]:
        figures = self._look()
        if figures is not None:
            yield from families(figures)


def families(figures: RunFigures) -> Iterator[Metric]:
    """Everything one run has to say."""
    labels = (figures.model, figures.engine)
    run = InfoMetricFamily(f"{PREFIX}run", "The run whose figures these are.", labels=MODEL_LABELS)
    versions = {f"{name}_version": version for name, version in sorted(figures.versions.items())}
    run.add_metric(labels, {"run_id": figures.run_id, **versions})
    yield run
    for name, text in GAUGES.items():
        if name in figures.gauges:
            gauge = GaugeMetricFamily(f"{PREFIX}{name}", text, labels=MODEL_LABELS)
            gauge.add_metric(labels, figures.gauges[name])
            yield gauge
    for name, text in COUNTERS.items():
        if name in figures.counters:
            counter = CounterMetricFamily(f"{PREFIX}{name}", text, labels=MODEL_LABELS)
            counter.add_metric(labels, figures.counters[name])
            yield counter
    requests = CounterMetricFamily(
        f"{PREFIX}requests", "Requests that have ended, by outcome.", labels=(*MODEL_LABELS, "outcome")
    )
    for outcome, count in sorted(figures.counts.outcomes.items()):
        requests.add_metric((*labels, outcome), count)
    yield requests
    errors = CounterMetricFamily(
        f"{PREFIX}scrape_errors", "Looks at the server's /metrics that failed.", labels=("target",)
    )
    errors.add_metric((figures.target,), figures.scrape_errors)
    yield errors
    for timing, (name, text) in HISTOGRAMS.items():
        yield _histogram(f"{PREFIX}{name}", text, labels, figures.counts.spreads[timing])
    yield from _health(figures.workers)


def _histogram(name: str, text: str, labels: tuple[str, ...], spread: Spread) -> Metric:
    buckets, below = [], 0
    for edge, count in zip((*map(str, spread.edges_s), "+Inf"), spread.counts, strict=True):
        below += count
        buckets.append((edge, float(below)))
    histogram = HistogramMetricFamily(name, text, labels=MODEL_LABELS)
    histogram.add_metric(labels, buckets, spread.sum_s)
    return histogram


def _health(workers: Mapping[str, Mapping[str, float]]) -> Iterator[Metric]:
    for signal, (name, text) in WORKER_GAUGES.items():
        gauge = GaugeMetricFamily(f"{PREFIX}{name}", text, labels=("worker",))
        for worker, signals in workers.items():
            if signal in signals:
                gauge.add_metric((worker,), signals[signal])
        if gauge.samples:
            yield gauge
