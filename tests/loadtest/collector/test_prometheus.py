"""What a Prometheus scraped is read as the page was: whole, once, at the time of its scrape."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aiohttp
import pytest
from pages_served import serving_paths

from loadtest.collector.looks import PrometheusSource, PrometheusWatch
from loadtest.collector.prometheus import (
    PrometheusError,
    Rounds,
    discovery,
    figures,
    scrapes_of,
    servers_of,
)
from loadtest.origin import ApiKey, parse_origin
from loadtest.records import Sample

A, B = ("vllm", "gpu-1:8000"), ("vllm", "gpu-2:8000")
S = 1_000_000_000


def series(
    name: str, server: tuple[str, str], values: Sequence[tuple[float, str]], **labels: str
) -> dict[str, Any]:
    job, instance = server
    metric = {"__name__": name, "job": job, "instance": instance, "model_name": "m", "engine": "0", **labels}
    return {"metric": metric, "values": [list(value) for value in values]}


def answer(*found: dict[str, Any]) -> bytes:
    return json.dumps({"status": "success", "data": {"resultType": "matrix", "result": list(found)}}).encode()


def running(server: tuple[str, str], *values: tuple[float, str]) -> dict[str, Any]:
    return series("vllm:num_requests_running", server, values)


def rounds(*servers: tuple[str, str]) -> Rounds:
    return Rounds(engine="vllm", prometheus="http://p:9090", servers=servers, wall_less_mono_ns=90 * S)


def told(state: Rounds, body: bytes, not_before_ns: int = 0) -> list[Sample]:
    return state.rows(scrapes_of(body, "vllm", state.servers), not_before_ns)


def query_of(path: str) -> str:
    return parse_qs(urlsplit(path).query)["query"][0]


def test_a_model_name_cannot_leave_its_quotes() -> None:
    assert query_of(discovery("vllm", 'a"}\\', None)) == 'vllm:num_requests_running{model_name="a\\"}\\\\"}'


def test_a_person_may_say_which_servers_are_meant() -> None:
    assert query_of(discovery("lmdeploy", "m", 'job="x"')) == 'lmdeploy:num_requests_running{job="x"}'


def test_figures_are_asked_of_the_found_servers_alone_and_raw() -> None:
    query = query_of(figures("vllm", [A, ("vllm", "a.b:1")], 30))
    assert query.endswith('job=~"vllm",instance=~"a\\\\.b:1|gpu-1:8000"}[30s]')
    assert "process_start_time_seconds" in query
    assert "lmdeploy" not in query


def test_servers_are_told_apart_by_job_and_instance() -> None:
    assert servers_of(answer(running(B, (1, "0")), running(A, (1, "0")))) == (A, B)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (answer(), "correct --prometheus-selector"),
        (b"<html>", "not that of a Prometheus"),
        (b'{"status": "error", "error": "parse error"}', "refuses the query: 'parse error'"),
        (b'{"status": "success", "data": {"result": [1]}}', "not that of a Prometheus"),
    ],
)
def test_an_answer_that_names_no_server_says_what_to_correct(body: bytes, said: str) -> None:
    with pytest.raises(PrometheusError, match=said):
        servers_of(body)


def test_a_scrape_is_one_row_at_its_own_time_and_says_where_it_comes_from() -> None:
    waiting = series("vllm:num_requests_waiting", A, [(100.5, "2")])
    (row,) = told(rounds(A), answer(running(A, (100.5, "7")), waiting))
    assert row.at_ns == 10.5 * S
    assert row.signals == {"engines": 1, "running": 7, "waiting": 2}
    assert row.labels == {"engine": "vllm", "via": "prometheus http://p:9090"}


def test_a_scrape_is_told_once_however_often_it_is_seen() -> None:
    state = rounds(A)
    first = told(state, answer(running(A, (100, "7"), (101, "8"))))
    second = told(state, answer(running(A, (100, "7"), (101, "8"), (102, "9"))))
    assert [row.signals["running"] for row in first + second] == [7, 8, 9]


def test_what_was_scraped_before_the_run_is_not_of_it() -> None:
    rows = told(rounds(A), answer(running(A, (100, "7"), (101, "8"))), not_before_ns=11 * S)
    assert [row.signals["running"] for row in rows] == [8]


def test_replicas_add_up_when_each_was_scraped_once_more() -> None:
    state = rounds(A, B)
    rows = told(state, answer(running(A, (100, "7"), (105, "1")), running(B, (102, "5"))))
    assert [(r.source, r.at_ns, r.signals["running"]) for r in rows] == [
        ("engine", 12 * S, 12),
        ("replica", 10 * S, 7),
        ("replica", 12 * S, 5),
    ]
    later = told(state, answer(running(B, (107, "2"))))
    assert later[0].signals["running"] == 3


def test_a_number_that_is_none_takes_its_signal_and_leaves_the_rest() -> None:
    usage = series("vllm:kv_cache_usage_perc", A, [(100, "NaN")])
    (row,) = told(rounds(A), answer(running(A, (100, "7")), usage))
    assert row.signals == {"engines": 1, "running": 7}


def watch(url: str, clock: Callable[[], int] = lambda: 0, key: ApiKey | None = None) -> PrometheusWatch:
    source = PrometheusSource(
        origin=parse_origin(url),
        engine="vllm",
        model="m",
        selector=None,
        key=key,
        began_ns=0,
        wall_less_mono_ns=0,
    )
    return PrometheusWatch(source, clock)


def looks(watcher: PrometheusWatch, times: int) -> list[list[Sample]]:
    async def main() -> list[list[Sample]]:
        async with aiohttp.ClientSession() as session:
            return [await watcher.look(session) for _ in range(times)]

    return asyncio.run(main())


def test_a_watch_finds_its_servers_asks_for_them_and_carries_the_metrics_key() -> None:
    bodies = [answer(running(A, (1, "0"))), answer(running(A, (1, "4"))), answer(running(A, (2, "5")))]
    with serving_paths(lambda _: bodies.pop(0)) as (url, asked):
        rows = looks(watch(url, key=ApiKey("sk-METRICS")), 2)
    assert [row.signals["running"] for batch in rows for row in batch] == [4, 5]
    assert {key for _, key in asked} == {"Bearer sk-METRICS"}
    assert all(path.startswith("/api/v1/query?") for path, _ in asked)


def test_a_prometheus_that_has_nothing_new_for_a_minute_is_a_gap() -> None:
    times_ns = iter([0, 0, 30 * S, 61 * S, 61 * S])
    with serving_paths(lambda _: answer(running(A, (1, "4")))) as (url, _):
        _, quiet, silent = looks(watch(url, lambda: next(times_ns)), 3)
    assert quiet == []
    assert [row.gap for row in silent] == ["no new scrape of the whole server for 60 s"]


def test_a_prometheus_without_the_model_is_a_gap_until_it_has_it() -> None:
    bodies = [answer(), answer(running(A, (1, "0"))), answer(running(A, (1, "4")))]
    with serving_paths(lambda _: bodies.pop(0)) as (url, _):
        (gap,), (row,) = looks(watch(url), 2)
    assert "no series of this model" in str(gap.gap)
    assert row.signals["running"] == 4
