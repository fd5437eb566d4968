"""The families of vLLM 0.32's /metrics that the twin can fill: names, help texts, labels and buckets.

Checked against recorded pages in tests/fixtures/metrics.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from estimator.capacity import vllm_headline
from estimator.twin.profile import TwinProfile
from estimator.twin.telemetry import Family, Metrics, Page, Tally, Telemetry, one_two_five

LATENCY_S: Final = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
TTFT_S: Final = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
ITL_S: Final = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0),
)
ITERATION: Final = (1.0, *(float(2**power) for power in range(3, 15)))
PREEMPTIONS: Final = (1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0)
FINISH_REASONS: Final = ("stop", "length", "abort", "error", "repetition")
REJECTIONS: Final = ("max_num_queued_reqs", "max_num_queued_tokens")
"""v1/metrics/loggers.py ADMISSION_REASONS."""
PHASES: Final = {"queue": "WAITING", "inference": "RUNNING", "prefill": "PREFILL", "decode": "DECODE"}
WAITING_BY_REASON: Final = (
    "Number of waiting requests by reason. Reason labels: 'capacity' = waiting for scheduling capacity; "
    "'deferred' = deferred by transient constraints (LoRA budget, KV transfer, blocked status). "
    "Sum of all reasons equals vllm:num_requests_waiting."
)


def buckets(profile: TwinProfile) -> Mapping[str, Sequence[float]]:
    tokens = one_two_five(profile.max_model_len)
    return {
        "iteration": ITERATION,
        "ttft": TTFT_S,
        "itl": ITL_S,
        "request_tpot": ITL_S,
        "e2e": LATENCY_S,
        **dict.fromkeys(PHASES, LATENCY_S),
        **dict.fromkeys(("prompt", "output", "max_tokens", "computed"), tokens),
        "preemptions": PREEMPTIONS,
    }


def _histogram(name: str, text: str, tally: str) -> Family:
    def read(telemetry: Telemetry) -> Tally:
        return telemetry.tallies[tally]

    return Family(kind="histogram", name=f"vllm:{name}", text=text, read=read)


def _waiting(telemetry: Telemetry) -> Mapping[str, float]:
    return {"capacity": len(telemetry.engine.waiting), "deferred": 0}


def _finished(telemetry: Telemetry) -> Mapping[str, float]:
    # vLLM 0.32 leaves a client's disconnect out of "abort" (seen on a running server), so this does too.
    return {reason: telemetry.finished_by_reason[reason] for reason in FINISH_REASONS}


def _by_source(telemetry: Telemetry) -> Mapping[str, float]:
    cached = telemetry.cached_tokens
    computed = telemetry.since_reset("prompt_tokens") - cached
    return {"local_compute": computed, "local_cache_hit": cached, "external_kv_transfer": 0}


FAMILIES: Final = (
    Family(
        kind="gauge",
        name="vllm:num_requests_running",
        text="Number of requests in model execution batches.",
        read=lambda telemetry: len(telemetry.engine.running),
    ),
    Family(
        kind="gauge",
        name="vllm:num_requests_waiting",
        text="Number of requests waiting to be processed.",
        read=lambda telemetry: len(telemetry.engine.waiting),
    ),
    Family(
        kind="gauge",
        name="vllm:num_requests_waiting_by_reason",
        text=WAITING_BY_REASON,
        read=_waiting,
        by="reason",
    ),
    Family(
        kind="gauge",
        name="vllm:kv_cache_usage_perc",
        text="KV-cache usage. 1 means 100 percent usage.",
        read=lambda telemetry: telemetry.engine.pool.usage,
    ),
    Family(
        kind="counter",
        name="vllm:prefix_cache_queries",
        text="Prefix cache queries, in terms of number of queried tokens.",
        read=lambda telemetry: telemetry.since_reset("prefix_cache_queries"),
    ),
    Family(
        kind="counter",
        name="vllm:prefix_cache_hits",
        text="Prefix cache hits, in terms of number of cached tokens.",
        read=lambda telemetry: telemetry.since_reset("prefix_cache_hits"),
    ),
    Family(
        kind="counter",
        name="vllm:num_preemptions",
        text="Cumulative number of preemption from the engine.",
        read=lambda telemetry: telemetry.since_reset("preemptions"),
    ),
    Family(
        kind="counter",
        name="vllm:prompt_tokens",
        text="Number of prefill tokens processed.",
        read=lambda telemetry: telemetry.since_reset("prompt_tokens"),
    ),
    Family(
        kind="counter",
        name="vllm:prompt_tokens_by_source",
        text="Number of prompt tokens by source.",
        read=_by_source,
        by="source",
    ),
    Family(
        kind="counter",
        name="vllm:prompt_tokens_cached",
        text="Number of cached prompt tokens (local + external).",
        read=lambda telemetry: telemetry.cached_tokens,
    ),
    Family(
        kind="counter",
        name="vllm:generation_tokens",
        text="Number of generation tokens processed.",
        read=lambda telemetry: telemetry.since_reset("generation_tokens"),
    ),
    Family(
        kind="counter",
        name="vllm:request_success",
        text="Count of successfully processed requests.",
        read=_finished,
        by="finished_reason",
    ),
    _histogram("iteration_tokens_total", "Histogram of number of tokens per engine_step.", "iteration"),
    _histogram("time_to_first_token_seconds", "Histogram of time to first token in seconds.", "ttft"),
    _histogram("inter_token_latency_seconds", "Histogram of inter-token latency in seconds.", "itl"),
    _histogram(
        "request_time_per_output_token_seconds",
        "Histogram of time_per_output_token_seconds per request.",
        "request_tpot",
    ),
    _histogram("e2e_request_latency_seconds", "Histogram of e2e request latency in seconds.", "e2e"),
    *(
        _histogram(
            f"request_{phase}_time_seconds", f"Histogram of time spent in {words} phase for request.", phase
        )
        for phase, words in PHASES.items()
    ),
    _histogram("request_prompt_tokens", "Number of prefill tokens processed.", "prompt"),
    _histogram("request_generation_tokens", "Number of generation tokens processed.", "output"),
    _histogram(
        "request_prefill_kv_computed_tokens",
        "Histogram of new KV tokens computed during prefill (excluding cached tokens).",
        "computed",
    ),
    _histogram("request_params_max_tokens", "Histogram of the max_tokens request parameter.", "max_tokens"),
    _histogram(
        "request_num_preemptions",
        "Histogram of the number of times a request was preempted.",
        "preemptions",
    ),
)


def cache_config_labels(profile: TwinProfile, engine: str, engines: int) -> dict[str, str]:
    """The labels of vllm:cache_config_info that describe this cache; values are text, as in vLLM.

    Blocks are those of all data-parallel engines together, as vLLM shows them with each.
    """
    headline = vllm_headline(profile.pool, profile.max_model_len)
    return {
        "block_size": str(profile.block_size),
        "cache_dtype": "auto",
        "effective_attention_block_size": str(profile.block_size),
        "enable_prefix_caching": str(profile.enable_prefix_caching),
        "engine": engine,
        "gpu_memory_utilization": str(profile.gpu_memory_utilization),
        "kv_cache_max_concurrency": str(headline.max_concurrency),
        "kv_cache_size_tokens": str(headline.cache_tokens),
        "num_gpu_blocks": str(engines * profile.num_gpu_blocks),
        "sliding_window": "None",
    }


def _others(metrics: Metrics) -> Iterator[Metric]:
    """The facts of the front end, which is one for all engines, and the caches' configuration."""
    rejected = CounterMetricFamily(
        "vllm:admission_rejections",
        "Number of admission attempts rejected by a queue limit, by reason.",
        labels=["model_name", "reason"],
    )
    for reason in REJECTIONS:
        rejected.add_metric([metrics.profile.served_model_name, reason], metrics.rejections[reason])
    yield rejected
    engines = len(metrics.telemetries)
    configs = [cache_config_labels(one.profile, one.labels["engine"], engines) for one in metrics.telemetries]
    config = GaugeMetricFamily(
        "vllm:cache_config_info", "Information of the LLMEngine CacheConfig", labels=list(configs[0])
    )
    for labels in configs:
        config.add_metric(list(labels.values()), 1.0)
    yield config


PAGE: Final = Page(families=FAMILIES, buckets=buckets, others=_others)
