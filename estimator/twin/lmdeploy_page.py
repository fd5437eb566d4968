"""The families of LMDeploy 0.18's /metrics that the twin can fill (lmdeploy/metrics/loggers.py).

LMDeploy has no preemption counter, and writes its scheduler's gauges only every 10 seconds
(serve/openai/api_server.py create_lifespan_handler): the page shows the last snapshot, not this moment.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from prometheus_client.core import InfoMetricFamily, Metric

from estimator.twin.lmdeploy_limits import LmdeployLimits
from estimator.twin.profile import TwinProfile
from estimator.twin.telemetry import Family, Metrics, Page, Tally, Telemetry, one_two_five
from estimator.twin.vllm_page import ITERATION, LATENCY_S, PHASES, TTFT_S

GAUGES_EVERY_S: Final = 10.0
TPOT_S: Final = (
    *(0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0),
)
RATIO: Final = tuple(tenth / 10 for tenth in range(11))
RESPONSES: Final = (
    *("SUCCESS", "FINISH", "ENGINE_STOP_ERROR", "SESSION_REPEAT", "SESSION_NOT_EXIST", "HANDLER_NOT_EXIST"),
    *("INPUT_LENGTH_ERROR", "INTERNAL_ENGINE_ERROR", "CANCEL", "PREFIX_CACHE_CONFLICT", "NO_QUEUE"),
    *("NOT_SUPPORTED", "OUT_OF_MEMORY"),
)
"""lmdeploy.messages.ResponseType: the label values of request_success_total; only FINISH ever counts."""


def buckets(profile: TwinProfile) -> Mapping[str, Sequence[float]]:
    tokens = one_two_five(profile.max_model_len)
    return {
        "iteration": ITERATION,
        "ttft": TTFT_S,
        "itl": TPOT_S,
        "tpot": TPOT_S,
        "e2e": LATENCY_S,
        **dict.fromkeys(PHASES, LATENCY_S),
        **dict.fromkeys(("prompt", "output", "cached"), tokens),
        "hit_ratio": RATIO,
    }


def _gauge(name: str, text: str, key: str = "") -> Family:
    def read(telemetry: Telemetry) -> float:
        return telemetry.snapshot.get(key, 0.0)

    return Family(kind="gauge", name=f"lmdeploy:{name}", text=text, read=read)


def _histogram(name: str, text: str, tally: str) -> Family:
    def read(telemetry: Telemetry) -> Tally:
        return telemetry.tallies[tally]

    return Family(kind="histogram", name=f"lmdeploy:{name}", text=text, read=read)


def _counter(name: str, text: str, key: str = "") -> Family:
    def read(telemetry: Telemetry) -> float:
        return telemetry.since_reset(key) if key else 0.0

    return Family(kind="counter", name=f"lmdeploy:{name}", text=text, read=read)


def _finished(telemetry: Telemetry) -> Mapping[str, float]:
    done = telemetry.finished_by_reason.total()
    return {f"ResponseType.{name}": done if name == "FINISH" else 0.0 for name in RESPONSES}


def _cache_usage(telemetry: Telemetry) -> float:
    """The PyTorch engine counts its reserved block as used (pytorch/paging/scheduler.py schedule_metrics)."""
    limits, used_share = telemetry.engine.limits, telemetry.snapshot.get("kv_usage", 0.0)
    if not isinstance(limits, LmdeployLimits):
        return used_share
    return (used_share * limits.usable_blocks + limits.reserved_blocks) / limits.num_gpu_blocks


FAMILIES: Final = (
    _gauge("num_requests_succeeded", "Number of current succeeded requests.", "succeeded"),
    _gauge("num_requests_failed", "Number of current failed requests."),
    _gauge("num_api_requests_routed", "Number of requests routed to request handles.", "routed"),
    _gauge(
        "num_api_requests_waiting",
        "Number of requests waiting for free request handles.",
        "api_waiting",
    ),
    _gauge("num_requests_running", "Number of requests in model execution batches.", "running"),
    _gauge("num_requests_waiting", "Number of requests waiting to be processed.", "waiting"),
    Family(
        kind="gauge",
        name="lmdeploy:gpu_cache_usage_perc",
        text="GPU KV-cache usage. 1 means 100 percent usage.",
        read=_cache_usage,
    ),
    _gauge(
        "prefix_cache_hit_rate",
        "Prefix-cache hit rate. 1 means 100 percent of queried prefix tokens hit.",
    ),
    _counter("prompt_tokens", "Number of prefill tokens processed.", "prompt_tokens"),
    _counter("generation_tokens", "Number of generation tokens processed.", "generation_tokens"),
    _counter("cached_tokens", "Total prefix-cached input tokens served."),
    Family(
        kind="counter",
        name="lmdeploy:request_success",
        text="Count of successfully processed requests.",
        read=_finished,
        by="finished_reason",
    ),
    _histogram("request_prompt_tokens", "Number of prefill tokens processed.", "prompt"),
    _histogram("request_generation_tokens", "Number of generation tokens processed.", "output"),
    _histogram("request_cached_tokens", "Number of prefix-cached input tokens per request.", "cached"),
    _histogram(
        "request_cache_hit_ratio",
        "Prefix cache hit ratio (cached_tokens / prompt_tokens) per request.",
        "hit_ratio",
    ),
    _histogram("iteration_tokens_total", "Histogram of number of tokens per engine_step.", "iteration"),
    _histogram("time_to_first_token_seconds", "Histogram of time to first token in seconds.", "ttft"),
    _histogram("time_per_output_token_seconds", "Histogram of time per output token in seconds.", "tpot"),
    _histogram("iter_token_latency", "Histogram of inter-token latency", "itl"),
    _histogram("e2e_request_latency_seconds", "Histogram of e2e request latency in seconds.", "e2e"),
    *(
        _histogram(
            f"request_{phase}_time_seconds", f"Histogram of time spent in {words} phase for request.", phase
        )
        for phase, words in PHASES.items()
    ),
)


def _backend_config(_: Metrics) -> Iterator[Metric]:
    info = InfoMetricFamily("lmdeploy:backend_config", "information of backend_config")
    info.add_metric([], {})  # LMDeploy declares it and never fills it
    yield info


PAGE: Final = Page(families=FAMILIES, buckets=buckets, others=_backend_config)
