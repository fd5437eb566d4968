"""Several pages are one server: counts add up, the fullest engine is named, and half of it is nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtest.collector.engine_metrics import read_engine_page
from loadtest.collector.joined import joined_looks, joined_readings, joined_signals
from loadtest.records import Sample

PAGES = Path(__file__).parents[2] / "fixtures" / "metrics"
LOADED = read_engine_page((PAGES / "vllm-0.32-loaded.txt").read_text())
TWO = read_engine_page((PAGES / "vllm-0.10-two-engines.txt").read_text())


def look(target: str, at_ns: int = 1, gap: str | None = None, **signals: float) -> Sample:
    labels = {"engine": "vllm"}
    return Sample(at_ns=at_ns, source="engine", target=target, gap=gap, signals=signals, labels=labels)


def test_one_page_is_read_as_it_is() -> None:
    only = look("a", running=3)
    assert joined_looks([only]) == [only]
    assert joined_readings([LOADED]) is LOADED


def test_requests_add_up_and_the_fullest_cache_is_the_servers() -> None:
    a = {"running": 3.0, "kv_usage_ratio": 0.9, "kv_usage_mean_ratio": 0.9, "engines": 1.0}
    b = {"running": 5.0, "kv_usage_ratio": 0.5, "kv_usage_mean_ratio": 0.3, "engines": 3.0}
    whole = joined_signals([a, b])
    assert whole == {
        "running": 8,
        "kv_usage_ratio": 0.9,
        "kv_usage_mean_ratio": pytest.approx(0.45),
        "engines": 4,
    }


def test_a_signal_that_one_page_lacks_is_absent() -> None:
    assert joined_signals([{"running": 1.0, "waiting": 2.0}, {"running": 1.0}]) == {"running": 2}


def test_a_restart_of_any_replica_changes_the_start_of_the_whole() -> None:
    before = joined_signals([{"process_start_time_seconds": 10.0}, {"process_start_time_seconds": 20.0}])
    after = joined_signals([{"process_start_time_seconds": 30.0}, {"process_start_time_seconds": 20.0}])
    assert before != after


def test_the_whole_is_a_row_and_each_replica_is_one_too() -> None:
    rows = joined_looks([look("http://a:1", 5, running=1), look("http://b:1", 7, running=2)])
    assert [(row.source, row.target, row.signals) for row in rows] == [
        ("engine", "http://a:1 and 1 more", {"running": 3}),
        ("replica", "http://a:1", {"running": 1}),
        ("replica", "http://b:1", {"running": 2}),
    ]
    assert rows[0].at_ns == 7


def test_without_one_of_its_pages_there_is_no_whole_and_the_gap_says_which() -> None:
    whole, *parts = joined_looks([look("http://a:1", running=1), look("http://b:1", gap="refused")])
    assert whole.gap == "1 of 2 pages: http://b:1: refused"
    assert whole.signals == {}
    assert parts[0].signals == {"running": 1}


def test_cache_settings_are_those_all_pages_share() -> None:
    both = joined_readings([LOADED, TWO])
    assert both.signals["engines"] == 3
    for name, value in both.cache_config.items():
        assert LOADED.cache_config[name] == TWO.cache_config[name] == value
