"""A run's own metrics reach an OpenTelemetry collector where the standard variables name one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from load_processes import twin
from locust_process import run_of, start_locust
from otlp_receiver import Received, attributes, receiver

from loadtest.collector.otlp import session_without_redirects

SCENARIO = """
name: sent
input_tokens: {kind: constant, tokens: 16}
output_tokens: {kind: constant, tokens: 12}
settle_s: 0.5
spawn_rate_per_s: 100
stages: [{users: 4, hold_s: 3}]
limits: {ttft_s: 1.75}
"""


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    with twin() as server:
        yield server


def run(home: Path, host: str, received: Received, *options: str, **environ: str) -> str:
    """A headless run to its end; what it said."""
    (home / "sent.yaml").write_text(SCENARIO)
    variables = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": received.url,
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20canary",
        "OTEL_METRIC_EXPORT_INTERVAL": "300",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment=test,team=serving",
        **environ,
    }
    ours = ["--scenario", "sent.yaml", "--headless", "--only-summary", "--host", host]
    process = start_locust(home, [*ours, "--exporter-port", "0", *options], environ=variables)
    told = "".join(process.communicate(timeout=90))
    assert process.returncode == 0, told
    return told


def test_what_is_sent_last_is_what_the_rows_say(tmp_path: Path, host: str) -> None:
    with receiver() as received:
        told = run(tmp_path, host, received, OTEL_SERVICE_NAME="nightly")
    folder, rows = run_of(tmp_path)
    found = received.metrics()
    assert len(received.exports) > 2, "only the last one came"
    assert received.paths == {"/v1/metrics"}
    assert received.headers[0]["authorization"] == "Bearer canary"
    assert "canary" not in told
    assert received.resource()["service.name"] == "nightly"
    assert received.resource()["team"] == "serving"
    requests = found["llm_loadtest_requests"].sum
    assert requests.is_monotonic
    sent = {attributes(p.attributes)["outcome"]: p.as_double for p in requests.data_points}
    assert sent == Counter(request.outcome for request in rows.requests)
    (ttft,) = found["llm_loadtest_request_ttft_seconds"].histogram.data_points
    times_s = [r.ttft_s for r in rows.requests if r.succeeded and r.ttft_s is not None]
    assert ttft.count == len(times_s) == sum(ttft.bucket_counts)
    assert ttft.sum == pytest.approx(sum(times_s))
    for index, edge in enumerate(ttft.explicit_bounds):
        assert sum(ttft.bucket_counts[: index + 1]) == sum(value <= edge for value in times_s), edge
    assert not ttft.HasField("min")
    assert ttft.start_time_unix_nano <= ttft.time_unix_nano
    (run_info,) = found["llm_loadtest_run_info"].gauge.data_points
    assert attributes(run_info.attributes)["run_id"] == folder.run_id


def test_without_an_interval_a_run_that_is_over_still_sends_once_under_our_name(
    tmp_path: Path, host: str
) -> None:
    with receiver() as received:
        run(tmp_path, host, received, OTEL_METRIC_EXPORT_INTERVAL="")
    assert len(received.exports) == 1
    assert received.resource()["service.name"] == "ullage"


def test_a_redirect_is_not_followed(tmp_path: Path, host: str) -> None:
    with receiver() as other, receiver(sends_to=other.url) as received:
        told = run(tmp_path, host, received, OTEL_METRIC_EXPORT_INTERVAL="")
    assert len(received.exports) == 1
    assert (other.exports, other.headers) == ([], [])
    assert "307" in told or "redirect" in told
    assert run_of(tmp_path)[0].read_manifest().state == "complete"


@pytest.mark.parametrize("status", [302, 307, 308])
def test_no_session_of_the_exporter_goes_where_it_is_sent(status: int) -> None:
    """An older exporter leaves it to the session."""
    with receiver() as other, receiver(sends_to=other.url, status=status) as received:
        session = session_without_redirects()
        with pytest.raises(requests.TooManyRedirects):
            session.post(received.url, data=b"", headers={"authorization": "Bearer canary"}, timeout=10)
        session.close()
    assert other.headers == []


def test_a_receiver_that_is_not_there_costs_a_run_nothing(tmp_path: Path, host: str) -> None:
    with receiver() as received:
        pass
    told = run(tmp_path, host, received, OTEL_EXPORTER_OTLP_TIMEOUT="1")
    assert "Connection refused" in told
    assert run_of(tmp_path)[0].read_manifest().state == "complete"
