"""The twin's /metrics page against a recorded one of vLLM 0.32: same names, types, labels and buckets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from estimator.twin import lmdeploy_page
from estimator.twin.engine import Engine
from estimator.twin.profile import read_profile
from estimator.twin.telemetry import Metrics, RequestCounts, RequestTimes, Tally, Telemetry
from estimator.twin.vllm_page import PAGE

LMDEPLOY = Path(__file__).resolve().parents[2] / "fixtures/metrics/lmdeploy-0.18-idle.txt"
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
    told = telemetry or Telemetry(engine, TINY, PAGE)
    page, content_type = Metrics([told], told.page).page()
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
        if metric.type == "histogram" and name.startswith("vllm:"):
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
    telemetry = Telemetry(engine, TINY, PAGE)
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
    telemetry = Telemetry(engine, TINY, PAGE)
    times = RequestTimes(arrived_s=10.0, scheduled_s=11.0, first_token_s=13.0, last_token_s=17.0)
    counts = RequestCounts(
        prompt_tokens=256, output_tokens=5, max_tokens=9, preemptions=2, finish_reason="stop"
    )
    telemetry.finished(times, counts)
    page = page_of(engine, telemetry)
    phases = {"queue": 1.0, "prefill": 2.0, "decode": 4.0, "inference": 6.0}
    for phase, seconds in phases.items():
        name = f"vllm:request_{phase}_time_seconds"
        assert value(page, name, f"{name}_sum") == seconds
    tpot = "vllm:request_time_per_output_token_seconds"
    assert value(page, tpot, f"{tpot}_sum") == 1.0
    assert value(page, "vllm:e2e_request_latency_seconds", "vllm:e2e_request_latency_seconds_sum") == 7.0
    reasons = "vllm:request_success"
    assert value(page, reasons, f"{reasons}_total", finished_reason="stop") == 1.0
    assert value(page, reasons, f"{reasons}_total", finished_reason="length") == 0.0


def test_a_reset_puts_counters_and_histograms_to_0_and_lets_the_engine_go_on() -> None:
    engine = Engine(TINY.limits)
    telemetry = Telemetry(engine, TINY, PAGE)
    engine.add("a", prompt_tokens=8, max_tokens=50)
    for _ in range(10):
        engine.settle(engine.step())
    telemetry.observe("ttft", 1.0)
    telemetry.reset()
    page = page_of(engine, telemetry)
    assert value(page, "vllm:generation_tokens", "vllm:generation_tokens_total") == 0.0
    ttft = "vllm:time_to_first_token_seconds"
    assert value(page, ttft, f"{ttft}_count") == 0.0
    engine.settle(engine.step())
    page = page_of(engine, telemetry)
    assert value(page, "vllm:generation_tokens", "vllm:generation_tokens_total") == 1.0


def test_many_equal_observations_count_as_many() -> None:
    tally = Tally((1.0, 2.0))
    tally.observe(1.0, times=3)
    tally.observe(5.0)
    assert tally.cumulative == [("1.0", 3.0), ("2.0", 3.0), ("+Inf", 4.0)]
    assert tally.total == 8.0


def test_the_twin_reports_its_own_lateness() -> None:
    engine = Engine(TINY.limits)
    telemetry = Telemetry(engine, TINY, PAGE)
    telemetry.lateness.observe(0.02)
    name = "ullage_twin_step_lateness_seconds"
    assert value(page_of(engine, telemetry), name, f"{name}_bucket", le="0.01") == 0.0
    assert value(page_of(engine, telemetry), name, f"{name}_bucket", le="0.02") == 1.0


def test_a_page_of_several_engines_has_each_family_once_and_a_sample_for_each() -> None:
    facts = [Telemetry(Engine(TINY.limits), TINY, PAGE, rank) for rank in range(3)]
    facts[1].observe("ttft", 1.0)
    page = Metrics(facts, PAGE).page()[0].decode()
    found = families(page)
    ttft = "vllm:time_to_first_token_seconds"
    assert [value(found, ttft, f"{ttft}_count", engine=str(rank)) for rank in range(3)] == [0.0, 1.0, 0.0]
    assert [sample.labels["engine"] for sample in found["vllm:cache_config_info"].samples] == ["0", "1", "2"]
    assert page.count(f"# TYPE {ttft} ") == 1
    shown = {sample.labels["num_gpu_blocks"] for sample in found["vllm:cache_config_info"].samples}
    assert shown == {str(3 * TINY.num_gpu_blocks)}, "vLLM shows the sum beside each"


def test_an_odd_model_name_can_be_read_from_the_page() -> None:
    odd = 'a "b"|"c" \\ d\ne'
    facts = Telemetry(Engine(TINY.limits), replace(TINY, served_model_name=odd), PAGE)
    for family in page_of(facts.engine, facts).values():
        for sample in family.samples:
            assert sample.labels.get("model_name", odd) == odd


def test_rejections_are_the_front_ends_and_know_no_engine() -> None:
    metrics = Metrics([Telemetry(Engine(TINY.limits), TINY, PAGE, rank) for rank in range(2)], PAGE)
    metrics.rejections["max_num_queued_reqs"] += 3
    name = "vllm:admission_rejections"
    samples = families(metrics.page()[0].decode())[name].samples
    assert [(sample.labels["reason"], sample.value) for sample in samples] == [
        ("max_num_queued_reqs", 3.0),
        ("max_num_queued_tokens", 0.0),
    ]
    metrics.reset()
    assert not metrics.rejections


def test_lmdeploys_page_has_its_names_types_texts_labels_and_buckets() -> None:
    engine = Engine(TINY.limits)
    recorded = families(LMDEPLOY.read_text())
    ours = page_of(engine, Telemetry(engine, TINY, lmdeploy_page.PAGE))
    for name, metric in ours.items():
        if name.startswith("lmdeploy:"):
            theirs = recorded[name]
            assert (metric.type, metric.documentation) == (theirs.type, theirs.documentation)
            assert label_sets(metric) == label_sets(theirs), name
            assert bounds(metric) == bounds(theirs), name
    unlike = {name for name in recorded if name.startswith("lmdeploy:")} - set(ours)
    assert {name for name in unlike if "spec_decode" not in name} == set()
    assert not any("preempt" in name for name in ours)


def test_lmdeploys_gauges_stand_still_between_snapshots_and_its_counters_do_not() -> None:
    engine = Engine(TINY.limits)
    telemetry = Telemetry(engine, TINY, lmdeploy_page.PAGE)
    for number in range(140):
        engine.add(f"r{number}", prompt_tokens=8, max_tokens=50)
    for _ in range(3):
        engine.settle(engine.step())
    page = page_of(engine, telemetry)
    assert value(page, "lmdeploy:num_requests_running", "lmdeploy:num_requests_running") == 0
    assert value(page, "lmdeploy:generation_tokens", "lmdeploy:generation_tokens_total") > 0
    telemetry.snapshot = telemetry.state()
    page = page_of(engine, telemetry)
    assert value(page, "lmdeploy:num_requests_running", "lmdeploy:num_requests_running") == 128
    assert value(page, "lmdeploy:num_api_requests_waiting", "lmdeploy:num_api_requests_waiting") == 12
