"""The twin's /metrics page: vLLM 0.32's names, help texts, labels and buckets, over the engine's own state.

Gauges and counters are read from the engine when the page is asked for; only histograms are fed as steps
go by. Checked against recorded pages in tests/fixtures/metrics.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from estimator.capacity import vllm_headline
from estimator.twin.engine import Engine
from estimator.twin.profile import TwinProfile

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
ENGINE: Final = "0"
_LATENCY_S: Final = (
    0.3,
    0.5,
    0.8,
    1,
    1.5,
    2,
    2.5,
    5,
    10,
    15,
    20,
    30,
    40,
    50,
    60,
    120,
    240,
    480,
    960,
    1920,
    7680,
)
_TTFT_S: Final = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10),
    *(20, 40, 80, 160, 640, 2560),
)
_ITL_S: Final = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10),
    *(20, 40, 80),
)
_ITERATION: Final = (1, *(2**power for power in range(3, 15)))
_PREEMPTIONS: Final = (1, 2, 3, 4, 5, 10, 20)
FINISH_REASONS: Final = ("stop", "length", "abort", "error", "repetition")
PHASES: Final = {"queue": "WAITING", "inference": "RUNNING", "prefill": "PREFILL", "decode": "DECODE"}
WAITING_BY_REASON: Final = (
    "Number of waiting requests by reason. Reason labels: 'capacity' = waiting for scheduling capacity; "
    "'deferred' = deferred by transient constraints (LoRA budget, KV transfer, blocked status). "
    "Sum of all reasons equals vllm:num_requests_waiting."
)
UNUSED_COUNTERS: Final = {
    "vllm:prefix_cache_queries": "Prefix cache queries, in terms of number of queried tokens.",
    "vllm:prefix_cache_hits": "Prefix cache hits, in terms of number of cached tokens.",
}
"""Always 0, as in a vLLM started with --no-enable-prefix-caching."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestTimes:
    """The timeline of a finished request, seconds on the server's clock."""

    arrived_s: float
    scheduled_s: float
    first_token_s: float
    last_token_s: float


class Telemetry:
    """The registry of one simulated server."""

    def __init__(self, engine: Engine, profile: TwinProfile) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.registry.register(_EngineState(engine, profile))
        self._model = profile.served_model_name
        tokens = _one_two_five(profile.max_model_len)
        add = self._histogram
        self.iteration_tokens = add(
            "iteration_tokens_total", "Histogram of number of tokens per engine_step.", _ITERATION
        )
        self.ttft = add(
            "time_to_first_token_seconds", "Histogram of time to first token in seconds.", _TTFT_S
        )
        self.itl = add("inter_token_latency_seconds", "Histogram of inter-token latency in seconds.", _ITL_S)
        self._tpot = add(
            "request_time_per_output_token_seconds",
            "Histogram of time_per_output_token_seconds per request.",
            _ITL_S,
        )
        self._e2e = add(
            "e2e_request_latency_seconds", "Histogram of e2e request latency in seconds.", _LATENCY_S
        )
        self._phases = {
            phase: add(
                f"request_{phase}_time_seconds",
                f"Histogram of time spent in {words} phase for request.",
                _LATENCY_S,
            )
            for phase, words in PHASES.items()
        }
        self._prompt = add("request_prompt_tokens", "Number of prefill tokens processed.", tokens)
        self._output = add("request_generation_tokens", "Number of generation tokens processed.", tokens)
        self._max_tokens = add(
            "request_params_max_tokens", "Histogram of the max_tokens request parameter.", tokens
        )
        self._preemptions = add(
            "request_num_preemptions",
            "Histogram of the number of times a request was preempted.",
            _PREEMPTIONS,
        )

    def finished(self, times: RequestTimes, prompt_tokens: int, output_tokens: int, preemptions: int) -> None:
        """Feeds the histograms of one request that ran to its end."""
        arrived, scheduled = times.arrived_s, times.scheduled_s
        first, last = times.first_token_s, times.last_token_s
        self._e2e.observe(last - arrived)
        self._phases["queue"].observe(scheduled - arrived)
        self._phases["prefill"].observe(first - scheduled)
        self._phases["decode"].observe(last - first)
        self._phases["inference"].observe(last - scheduled)
        self._tpot.observe((last - first) / (output_tokens - 1) if output_tokens > 1 else 0.0)
        self._prompt.observe(prompt_tokens)
        self._output.observe(output_tokens)
        self._max_tokens.observe(output_tokens)
        self._preemptions.observe(preemptions)

    def page(self) -> tuple[bytes, str]:
        """The page and its content type: Prometheus text 0.0.4."""
        return generate_latest(self.registry), CONTENT_TYPE

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        made = Histogram(
            f"vllm:{name}", text, ("model_name", "engine"), registry=self.registry, buckets=buckets
        )
        return made.labels(self._model, ENGINE)


class _EngineState(Collector):
    """Reads the engine at the moment of the scrape."""

    def __init__(self, engine: Engine, profile: TwinProfile) -> None:
        self._engine = engine
        self._labels = {"model_name": profile.served_model_name, "engine": ENGINE}
        self._cache_config = cache_config_labels(profile)

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        engine, stats = self._engine, self._engine.stats
        waiting = len(engine.waiting)
        yield self._gauge(
            "num_requests_running", "Number of requests in model execution batches.", len(engine.running)
        )
        yield self._gauge("num_requests_waiting", "Number of requests waiting to be processed.", waiting)
        yield self._by(
            GaugeMetricFamily(
                "vllm:num_requests_waiting_by_reason", WAITING_BY_REASON, labels=self._names("reason")
            ),
            {"capacity": waiting, "deferred": 0},
        )
        yield self._gauge(
            "kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", engine.pool.usage
        )
        for name, text in UNUSED_COUNTERS.items():
            yield self._counter(name, text, 0)
        yield self._counter(
            "vllm:num_preemptions", "Cumulative number of preemption from the engine.", stats.preemptions
        )
        yield self._counter("vllm:prompt_tokens", "Number of prefill tokens processed.", stats.prompt_tokens)
        yield self._counter(
            "vllm:generation_tokens", "Number of generation tokens processed.", stats.generation_tokens
        )
        # vLLM 0.32 leaves a client's disconnect out of "abort" (seen on a running server), so this does too.
        finished = dict.fromkeys(FINISH_REASONS, 0) | {"length": stats.finished["length"]}
        yield self._by(
            CounterMetricFamily(
                "vllm:request_success",
                "Count of successfully processed requests.",
                labels=self._names("finished_reason"),
            ),
            finished,
        )
        config = GaugeMetricFamily(
            "vllm:cache_config_info",
            "Information of the LLMEngine CacheConfig",
            labels=list(self._cache_config),
        )
        config.add_metric(list(self._cache_config.values()), 1.0)
        yield config

    def _names(self, *more: str) -> list[str]:
        return [*self._labels, *more]

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(f"vllm:{name}", text, labels=self._names())
        family.add_metric(list(self._labels.values()), value)
        return family

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(name, text, labels=self._names())
        family.add_metric(list(self._labels.values()), value)
        return family

    def _by(self, family: GaugeMetricFamily | CounterMetricFamily, values: Mapping[str, int]) -> Metric:
        for reason, value in values.items():
            family.add_metric([*self._labels.values(), reason], value)
        return family


def cache_config_labels(profile: TwinProfile) -> dict[str, str]:
    """The labels of vllm:cache_config_info that describe this cache; values are text, as in vLLM."""
    headline = vllm_headline(profile.pool, profile.max_model_len)
    return {
        "block_size": str(profile.block_size),
        "cache_dtype": "auto",
        "effective_attention_block_size": str(profile.block_size),
        "enable_prefix_caching": "False",
        "engine": ENGINE,
        "gpu_memory_utilization": str(profile.gpu_memory_utilization),
        "kv_cache_max_concurrency": str(headline.max_concurrency),
        "kv_cache_size_tokens": str(headline.cache_tokens),
        "num_gpu_blocks": str(profile.num_gpu_blocks),
        "sliding_window": "None",
    }


def _one_two_five(largest: int) -> tuple[float, ...]:
    """1, 2, 5, 10, ... up to `largest`: the buckets vLLM gives token counts."""
    series = (digit * 10**power for power in range(12) for digit in (1, 2, 5))
    return tuple(bound for bound in series if bound <= largest)
