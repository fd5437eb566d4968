"""What a page shows is read exactly; what it does not show whole is absent."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from loadtest.collector.engine_metrics import LMDEPLOY, PROCESS, VLLM, EngineReading, read_engine_page
from loadtest.records import SIGNALS

PAGES = Path(__file__).parents[2] / "fixtures" / "metrics"
LOADED = (PAGES / "vllm-0.32-loaded.txt").read_text()
TWO_ENGINES = (PAGES / "vllm-0.10-two-engines.txt").read_text()
LMDEPLOY_PAGE = (PAGES / "lmdeploy-0.18.txt").read_text()


def read(name: str) -> EngineReading:
    return read_engine_page((PAGES / name).read_text())


def a_page(*lines: str) -> str:
    return "\n".join(lines) + "\n"


def test_a_loaded_vllm_shows_every_signal_of_the_engine() -> None:
    reading = read_engine_page(LOADED)
    assert reading.engine == "vllm"
    assert reading.model_names == ("tiny",)
    assert reading.skipped_lines == 0
    assert reading.signals == {
        "engines": 1,
        "running": 46,
        "waiting": 10,
        "kv_usage_ratio": 0.990215264187867,
        "kv_usage_mean_ratio": 0.990215264187867,
        "preemptions_total": 0,
        "prompt_tokens_total": 16393,
        "generation_tokens_total": 4106,
        "requests_finished_total": 7,
        "prefix_cache_queries_total": 0,
        "prefix_cache_hits_total": 0,
        "ttft_seconds_sum": 34.712801694869995,
        "ttft_seconds_count": 63,
        "process_start_time_seconds": 1.79523642086e09,
        "process_resident_memory_bytes": 6.71002624e08,
        "process_open_fds": 90,
    }


def test_the_cache_config_is_the_text_the_server_shows() -> None:
    config = read_engine_page(LOADED).cache_config
    assert (config["num_gpu_blocks"], config["block_size"]) == ("512", "32")
    assert config["kv_cache_size_tokens"] == "16384"
    assert config["kv_cache_dtype_skip_layers"] == "[]"


def test_our_reading_equals_that_of_prometheus_own_parser() -> None:
    shown = {
        sample.name: sample.value
        for family in text_string_to_metric_families(LOADED)
        for sample in family.samples
        if "finished_reason" not in sample.labels
    }
    signals = read_engine_page(LOADED).signals
    for signal, source in (*VLLM.items(), *PROCESS.items()):
        if source.reasons is None:
            assert signals[signal] == shown[source.names[0]]


def test_tables_speak_only_of_known_signals() -> None:
    assert set(VLLM) | set(LMDEPLOY) | set(PROCESS) <= set(SIGNALS)


def test_vllm_0_6_counts_swapped_requests_as_waiting_and_aborts_as_nothing() -> None:
    signals = read("vllm-0.6.txt").signals
    assert signals["waiting"] == 5 + 3
    assert signals["requests_finished_total"] == 100 + 60
    assert signals["kv_usage_ratio"] == 0.97


def test_vllm_0_6_has_a_hit_rate_but_no_prefix_cache_counters() -> None:
    signals = read("vllm-0.6.txt").signals
    assert "prefix_cache_queries_total" not in signals
    assert "prefix_cache_hits_total" not in signals


def test_vllm_0_8_names_of_the_first_v1_engine_are_known() -> None:
    signals = read("vllm-0.8.txt").signals
    assert (signals["kv_usage_ratio"], signals["preemptions_total"]) == (0.5, 1)
    assert (signals["prefix_cache_queries_total"], signals["prefix_cache_hits_total"]) == (640, 64)


def test_an_old_and_a_new_name_of_the_same_thing_count_once() -> None:
    signals = read("vllm-0.10-both-names.txt").signals
    assert signals["prefix_cache_queries_total"] == 640
    assert signals["kv_usage_ratio"] == 0.5


def test_several_engines_are_summed_and_the_fullest_cache_is_named() -> None:
    reading = read_engine_page(TWO_ENGINES)
    assert reading.signals["engines"] == 2
    assert reading.signals["running"] == 30 + 10
    assert reading.signals["kv_usage_ratio"] == 0.75
    assert reading.signals["kv_usage_mean_ratio"] == 0.5
    assert reading.signals["requests_finished_total"] == 5 + 1 + 2


def test_of_several_engines_only_the_cache_settings_they_share_are_shown() -> None:
    page = TWO_ENGINES.replace('engine="1",num_gpu_blocks="1998"', 'engine="1",num_gpu_blocks="900"')
    assert read_engine_page(page).cache_config == {"block_size": "16"}
    assert read_engine_page(page).engine_blocks == (1998, 900)


def test_vllm_shows_the_blocks_of_all_engines_beside_each() -> None:
    reading = read_engine_page(TWO_ENGINES)
    assert reading.cache_config == {"block_size": "16", "num_gpu_blocks": "999"}
    assert reading.engine_blocks == (999, 999)


def test_a_sum_that_lacks_one_engine_is_absent() -> None:
    page = TWO_ENGINES.replace('vllm:num_requests_running{engine="1",model_name="m"} 10.0\n', "")
    signals = read_engine_page(page).signals
    assert "running" not in signals
    assert signals["engines"] == 2


def test_lmdeploy_requests_wait_in_the_engine_or_in_front_of_it() -> None:
    signals = read_engine_page(LMDEPLOY_PAGE).signals
    assert signals["running"] == 120
    assert signals["waiting"] == 8 + 22


def test_lmdeploy_counts_finished_requests_and_has_no_preemption_counter() -> None:
    reading = read_engine_page(LMDEPLOY_PAGE)
    assert reading.engine == "lmdeploy"
    assert reading.signals["requests_finished_total"] == 110
    assert "preemptions_total" not in reading.signals
    assert reading.cache_config == {}


def test_lmdeploy_without_the_counter_shows_its_gauge_of_successes() -> None:
    assert read("lmdeploy-gauges-only.txt").signals["requests_finished_total"] == 100


def test_a_broken_line_loses_its_own_signal_only() -> None:
    reading = read("broken-lines.txt")
    assert reading.signals == {"engines": 1, "running": 46, "ttft_seconds_count": 63}
    assert reading.skipped_lines == 8


@pytest.mark.parametrize(
    "text", ["", "\n", "{}", "\0", "<html></html>\n", (PAGES / "not-metrics.html").read_text()]
)
def test_what_is_no_metrics_page_is_an_empty_reading(text: str) -> None:
    assert read_engine_page(text) == EngineReading()


def test_a_server_with_names_of_its_own_is_recognised_and_shows_nothing() -> None:
    reading = read_engine_page(a_page('vllm:renamed_again{engine="0"} 1'))
    assert (reading.engine, reading.signals) == ("vllm", {})


def test_a_series_shown_twice_counts_once() -> None:
    line = 'vllm:num_requests_running{engine="0"} 7'
    assert read_engine_page(a_page(line, line)).signals["running"] == 7


def test_labels_in_another_order_with_a_timestamp_and_a_brace_inside_are_read() -> None:
    page = a_page('vllm:num_requests_running { model_name="a}\\"b\\\\n\\n" , engine="0", } 7 1700000000000\r')
    reading = read_engine_page(page)
    assert reading.signals["running"] == 7
    assert reading.model_names == ('a}"b\\n\n',)


@pytest.mark.parametrize("number", ["NaN", "+Inf", "-Inf", "-1", "1_0", "0x10", "", "4 6 8", "seven"])
def test_what_is_no_count_is_not_seen(number: str) -> None:
    reading = read_engine_page(a_page(f"vllm:num_requests_running {number}", "vllm:num_requests_waiting 2"))
    assert reading.signals == {"engines": 1, "waiting": 2}
    assert reading.skipped_lines == 1


def test_a_sum_beyond_all_numbers_is_absent() -> None:
    lines = [f'vllm:prompt_tokens_total{{engine="{rank}"}} 1.7e308' for rank in (0, 1)]
    assert read_engine_page(a_page(*lines)).signals == {"engines": 2}


def test_half_a_number_at_the_end_of_a_cut_page_is_not_read() -> None:
    page = a_page("vllm:num_requests_waiting 2", "vllm:num_requests_running 46")
    assert read_engine_page(page[:-2]).signals == {"engines": 1, "waiting": 2}


@given(
    st.text(
        alphabet=st.sampled_from('vllm:num_requests_running{}="\\,0 1.5e+-naif#\n\0\r\u2028'), max_size=300
    )
)
def test_no_text_makes_the_reader_raise(tail: str) -> None:
    read_engine_page(tail)
    read_engine_page(f"vllm:num_requests_running{tail}\n")


@given(
    name=st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1),
    value=st.floats(min_value=0, allow_infinity=False),
)
def test_what_prometheus_client_writes_is_read_back(name: str, value: float) -> None:
    registry = CollectorRegistry()
    gauge = Gauge("vllm:num_requests_running", "text\nof two lines", ("model_name",), registry=registry)
    gauge.labels(name).set(value)
    page = generate_latest(registry).decode()
    reading = read_engine_page(page)
    assert reading.signals["running"] == value
    assert reading.model_names == (name,)


KINDS = {
    name: {s for table in (VLLM, LMDEPLOY, PROCESS) for s, at in table.items() if name in at.names + at.plus}
    for table in (VLLM, LMDEPLOY, PROCESS)
    for source in table.values()
    for name in source.names + source.plus
}


def signals_of(line: str) -> set[str]:
    return KINDS.get(line.split("{")[0].split(" ")[0], set())


@settings(deadline=None)
@given(page=st.sampled_from([LOADED, TWO_ENGINES, LMDEPLOY_PAGE]), data=st.data())
def test_deleting_a_line_changes_no_other_signal(page: str, data: st.DataObject) -> None:
    lines = page.split("\n")
    gone = data.draw(st.integers(0, len(lines) - 2))
    before = read_engine_page(page).signals
    after = read_engine_page("\n".join(lines[:gone] + lines[gone + 1 :])).signals
    changed = {signal for signal in {*before, *after} if before.get(signal) != after.get(signal)}
    assert changed <= signals_of(lines[gone])


@settings(deadline=None)
@given(page=st.sampled_from([LOADED, TWO_ENGINES, LMDEPLOY_PAGE]), data=st.data())
def test_a_damaged_line_makes_its_signal_absent_never_different(page: str, data: st.DataObject) -> None:
    lines = page.split("\n")
    known = [index for index, line in enumerate(lines) if signals_of(line)]
    hurt = data.draw(st.sampled_from(known))
    place = data.draw(st.integers(len(lines[hurt].split("{")[0].split(" ")[0]), len(lines[hurt])))
    lines_after = [*lines[:hurt], lines[hurt][:place] + "\0" + lines[hurt][place:], *lines[hurt + 1 :]]
    before, after = read_engine_page(page).signals, read_engine_page("\n".join(lines_after)).signals
    assert {signal: after[signal] for signal in after} == {
        signal: value for signal, value in before.items() if signal in after
    }
