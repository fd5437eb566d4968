"""The twin's /metrics page against a recorded one of vLLM 0.32: same names, types, labels and buckets."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from estimator.twin.engine import Engine
from estimator.twin.profile import read_profile
from estimator.twin.telemetry import RequestTimes, Telemetry

LOADED = Path(__file__).resolve().parents[2] / "fixtures/metrics/vllm-0.32-loaded.txt"
TINY = read_profile("tiny")
NEEDED = {
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:num_requests_waiting_by_reason",
    "vllm:kv_cache_usage_perc",
    "vllm:num_preemptions",
    "vllm:prompt_tokens",
    "vllm:generation_tokens",
    "vllm:request_success",
    "vllm:prefix_cache_queries",
    "vllm:prefix_cache_hits",
    "vllm:time_to_first_token_seconds",
    "vllm:inter_token_latency_seconds",
    "vllm:e2e_request_latency_seconds",
    "vllm:request_queue_time_seconds",
    "vllm:iteration_tokens_total",
    "vllm:cache_config_info",
    "process_start_time_seconds",
}


def families(page: str) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(page)}


def page_of(engine: Engine, telemetry: Telemetry | None = None) -> dict[str, Metric]:
    page, content_type = (telemetry or Telemetry(engine, TINY)).page()
    assert content_type.startswith("text/plain; version=0.0.4")
    return families(page.decode())


@pytest.fixture(scope="module")
def recorded() -> dict[str, Metric]:
    return families(LOADED.read_text())


def value(found: dict[str, Metric], family: str, sample: str, **labels: str) -> float:
    return next(
        one.value
        for one in found[family].samples
        if one.name == sample and labels.items() <= one.labels.items()
    )


def label_sets(metric: Metric, *, without: Iterable[str] = ()) -> set[tuple[str, ...]]:
    return {
        (sample.name, *sorted(set(sample.labels) - set(without)))
        for sample in metric.samples
        if not sample.name.endswith("_created")
    }


def test_every_family_is_one_of_vllms_with_its_type_help_and_labels(recorded: dict[str, Metric]) -> None:
    ours = {name: metric for name, metric in page_of(Engine(TINY.limits)).items() if name.startswith("vllm:")}
    for name, metric in ours.items():
        assert name in recorded
        theirs = recorded[name]
        assert (metric.type, metric.documentation) == (theirs.type, theirs.documentation)
        if name != "vllm:cache_config_info":
            assert label_sets(metric) == label_sets(theirs)


def test_histograms_have_vllms_buckets(recorded: dict[str, Metric]) -> None:
    ours = page_of(Engine(TINY.limits))
    for name, metric in ours.items():
        if metric.type == "histogram":
            assert bounds(metric) == bounds(recorded[name]), name


def bounds(metric: Metric) -> list[str]:
    return [sample.labels["le"] for sample in metric.samples if sample.name.endswith("_bucket")]


def test_what_a_collector_needs_is_there() -> None:
    assert set(page_of(Engine(TINY.limits))) >= NEEDED


def test_the_cache_config_says_what_a_real_server_of_this_size_says(recorded: dict[str, Metric]) -> None:
    (ours,) = page_of(Engine(TINY.limits))["vllm:cache_config_info"].samples
    (theirs,) = recorded["vllm:cache_config_info"].samples
    assert ours.labels.items() <= theirs.labels.items()
    assert ours.labels["kv_cache_size_tokens"] == "16384"


def test_gauges_and_counters_are_the_engines_own_at_the_moment_of_the_scrape() -> None:
    engine = Engine(TINY.limits)
    telemetry = Telemetry(engine, TINY)
    for number in range(70):
        engine.add(f"r{number}", prompt_tokens=256, max_tokens=256)
    for _ in range(60):
        engine.settle(engine.step())
    page = page_of(engine, telemetry)
    running = value(page, "vllm:num_requests_running", "vllm:num_requests_running")
    waiting = value(page, "vllm:num_requests_waiting", "vllm:num_requests_waiting")
    assert (running, waiting) == (len(engine.running), len(engine.waiting))
    assert running + waiting == 70
    assert value(page, "vllm:kv_cache_usage_perc", "vllm:kv_cache_usage_perc") == engine.pool.usage
    preemptions = value(page, "vllm:num_preemptions", "vllm:num_preemptions_total")
    assert preemptions == engine.stats.preemptions > 0


def test_a_finished_request_is_in_the_histograms_with_its_phases() -> None:
    engine = Engine(TINY.limits)
    telemetry = Telemetry(engine, TINY)
    times = RequestTimes(arrived_s=10.0, scheduled_s=11.0, first_token_s=13.0, last_token_s=17.0)
    telemetry.finished(times, 256, 5, 2)
    page = page_of(engine, telemetry)
    phases = {"queue": 1.0, "prefill": 2.0, "decode": 4.0, "inference": 6.0}
    for phase, seconds in phases.items():
        name = f"vllm:request_{phase}_time_seconds"
        assert value(page, name, f"{name}_sum") == seconds
    tpot = "vllm:request_time_per_output_token_seconds"
    assert value(page, tpot, f"{tpot}_sum") == 1.0
    assert value(page, "vllm:e2e_request_latency_seconds", "vllm:e2e_request_latency_seconds_sum") == 7.0
