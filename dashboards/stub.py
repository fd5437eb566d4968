"""A load test's and two GPUs' page, as their exporters write it: boards are checked without either."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

PREFIX: Final = "llm_loadtest_"
LABELS: Final = {"model_name": "tiny", "engine_kind": "vllm"}
STEP_S: Final = 8.0
LIMITS: Final = {"predicted_max": 31.0, "observed_max": 31.0, "safe_limit": 24.0}
TIMES_S: Final = {
    "request_ttft": 0.06,
    "request_tpot": 0.012,
    "inter_token_latency": 0.012,
    "request_duration": 0.7,
    "schedule_lag": 0.001,
}
COUNTERS_PER_S: Final = {"good_requests": 9.5, "prompt_tokens": 300.0, "output_tokens": 480.0}
OUTCOMES_PER_S: Final = {"ok": 9.5, "timeout": 0.5}
NOT_THERE: Final = 9223372036854775794.0
"""What DCGM writes where a GPU has no such figure."""
GPU: Final = {
    "DCGM_FI_DEV_FB_USED": 70_000.0,
    "DCGM_FI_DEV_FB_FREE": 11_000.0,
    "DCGM_FI_DEV_GPU_UTIL": 93.0,
    "DCGM_FI_DEV_POWER_USAGE": 610.0,
    "DCGM_FI_DEV_GPU_TEMP": 61.0,
    "DCGM_FI_DEV_SM_CLOCK": 1980.0,
    "DCGM_FI_DEV_XID_ERRORS": 0.0,
    "DCGM_FI_PROF_GR_ENGINE_ACTIVE": NOT_THERE,
}


class _Counts(Collector):
    def __init__(self, elapsed_s: float) -> None:
        self._elapsed_s = elapsed_s

    def collect(self) -> list[Metric]:
        names = tuple(LABELS)
        run = InfoMetricFamily(f"{PREFIX}run", "The run.", labels=names)
        run.add_metric(tuple(LABELS.values()), {"run_id": "20261121T024000Z-tiny"})
        requests = CounterMetricFamily(f"{PREFIX}requests", "Ended.", labels=(*names, "outcome"))
        for outcome, per_s in OUTCOMES_PER_S.items():
            requests.add_metric((*LABELS.values(), outcome), per_s * self._elapsed_s)
        errors = CounterMetricFamily(f"{PREFIX}scrape_errors", "Looks in vain.", labels=("target",))
        errors.add_metric(("http://127.0.0.1:8000/metrics",), 0)
        families: list[Metric] = [run, requests, errors]
        for name, per_s in COUNTERS_PER_S.items():
            family = CounterMetricFamily(f"{PREFIX}{name}", name, labels=names)
            family.add_metric(tuple(LABELS.values()), per_s * self._elapsed_s)
            families.append(family)
        return families


def page(elapsed_s: float) -> bytes:
    """What both exporters show `elapsed_s` seconds into a run; nothing has been sent in its first step."""
    registry = CollectorRegistry()
    step = int(elapsed_s / STEP_S)
    users = min(8.0 * step, 40.0)
    gauges = {
        "step_index": step,
        "target_concurrency": users,
        "in_flight_requests": users,
        "workers": 2,
        "predicted_kv_cache_usage_ratio": users / LIMITS["predicted_max"],
    } | {f"{name}_concurrency": value for name, value in LIMITS.items()}
    for name, value in gauges.items():
        Gauge(f"{PREFIX}{name}", name, LABELS, registry=registry).labels(**LABELS).set(value)
    busy = Gauge(f"{PREFIX}worker_cpu_usage_ratio", "Of one core.", ("worker",), registry=registry)
    for worker in ("0", "1"):
        busy.labels(worker=worker).set(0.3)
    sent = max(0, int(10 * (elapsed_s - STEP_S)))
    for name, time_s in TIMES_S.items():
        histogram = Histogram(f"{PREFIX}{name}_seconds", name, LABELS, registry=registry).labels(**LABELS)
        for _ in range(sent):
            histogram.observe(time_s)
    for name, value in GPU.items():
        gauge = Gauge(name, name, ("UUID", "gpu"), registry=registry)
        for index in ("0", "1"):
            gauge.labels(UUID=f"GPU-{index}", gpu=index).set(value)
    registry.register(_Counts(max(0.0, elapsed_s - STEP_S)))
    return generate_latest(registry)
