"""Whoever watches a run live counts what its rows will say: one process or two, with a page or headless."""

from __future__ import annotations

import csv
import io
import json
import signal
import socket
import subprocess
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from load_processes import twin
from locust_process import run_of, start_locust, two_processes, wait_for
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from loadtest.conductor.processes import free_port
from loadtest.row_file import Damage

SCENARIO = """
name: watched
input_tokens: {kind: constant, tokens: 16}
output_tokens: {kind: constant, tokens: 12}
settle_s: 0.5
spawn_rate_per_s: 100
stages: [{users: 4, hold_s: 2}, {users: 8, hold_s: 3}]
limits: {ttft_s: 1.75}
"""


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    with twin() as server:
        yield server


def get(port: int, path: str) -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return str(answer.read().decode())
    except OSError:  # it does not listen yet
        return ""


def families(port: int) -> dict[str, Metric]:
    page = get(port, "/metrics")
    return {
        family.name.removeprefix("llm_loadtest_"): family for family in text_string_to_metric_families(page)
    }


def ended(port: int) -> Counter[str]:
    requests = families(port).get("requests")
    samples = requests.samples if requests else ()
    return Counter({sample.labels["outcome"]: int(sample.value) for sample in samples})


def first_row(port: int) -> str:
    """What the first row of the Capacity tab is called."""
    told = json.loads(get(port, "/stats/requests") or "{}")
    return str(told["extended_stats"][0]["data"][0]["what"]) if told else ""


def start(home: Path, host: str, exporter_port: int, *options: str) -> subprocess.Popen[str]:
    (home / "watched.yaml").write_text(SCENARIO)
    ours = ("--scenario", "watched.yaml", "--exporter-port", str(exporter_port), "--host", host)
    return start_locust(home, [*ours, *options])


@pytest.mark.parametrize("workers", [1, 2])
def test_when_a_run_has_ended_the_live_counts_are_those_of_its_rows(
    tmp_path: Path, host: str, workers: int
) -> None:
    metrics, page = free_port(), free_port()
    crew = two_processes() if workers == 2 else ()
    web = ("--web-host", "127.0.0.1", "--web-port", str(page), "--autostart")
    process = start(tmp_path, host, metrics, *web, *crew)
    try:
        wait_for(lambda: ended(metrics)["ok"] > 0, process)
        wait_for(lambda: first_row(page) == "Verdict", process)  # until then it is one "so far"
        found = families(metrics)
        lines = list(csv.DictReader(io.StringIO(get(page, "/capacity/levels.csv"))))
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    folder, rows = run_of(tmp_path)
    requests = list(rows.requests)
    assert {s.labels["outcome"]: s.value for s in found["requests"].samples} == Counter(
        request.outcome for request in requests
    )
    times_s = {
        "request_ttft_seconds": [r.ttft_s for r in requests if r.succeeded and r.ttft_s is not None],
        "request_tpot_seconds": [r.tpot_s for r in requests if r.succeeded and r.tpot_s is not None],
        "request_duration_seconds": [r.e2e_s for r in requests if r.succeeded],
        "schedule_lag_seconds": [r.send_lateness_s for r in requests if r.send_lateness_s is not None],
    }
    for name, values in times_s.items():
        values_of = {s.name.rsplit("_", 1)[1]: s.value for s in found[name].samples}
        assert values_of["count"] == len(values)
        assert values_of["sum"] == pytest.approx(sum(values))
        for sample in found[name].samples:
            if sample.name.endswith("_bucket"):
                edge = float(sample.labels["le"])
                assert sample.value == sum(value <= edge for value in values), (name, edge)
    gaps = {s.name.rsplit("_", 1)[1]: s.value for s in found["inter_token_latency_seconds"].samples}
    assert gaps["count"] == sum(row.gaps for row in folder.stream_counts(Damage()))
    assert {s.labels["worker"] for s in found["worker_cpu_usage_ratio"].samples} == {
        f"w{number:02d}" for number in range(workers)
    }
    assert [line["users"] for line in lines] == ["4", "8"]


def test_a_headless_run_is_watched_just_so(tmp_path: Path, host: str) -> None:
    port = free_port()
    process = start(tmp_path, host, port, "--headless", "--only-summary")
    wait_for(lambda: ended(port)["ok"] > 0, process)
    (run,) = families(port)["run_info"].samples
    told = process.communicate(timeout=60)
    assert process.returncode == 0, told
    assert run.labels["run_id"] == run_of(tmp_path)[0].run_id


def test_a_port_that_is_taken_costs_a_run_nothing_but_one_line(tmp_path: Path, host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = start(tmp_path, host, port, "--headless", "--only-summary")
        told = process.communicate(timeout=60)
    assert process.returncode == 0, told
    assert f"no metrics on 127.0.0.1:{port}" in "".join(told)


def test_a_port_that_is_none_is_refused_before_anything_starts(tmp_path: Path, host: str) -> None:
    process = start_locust(tmp_path, ["--headless", "--host", host, "--exporter-port", "many"])
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "'many' must be a port" in errors
