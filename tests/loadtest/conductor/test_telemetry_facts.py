"""A page that was named is read before the load; one that shows nothing ends the run with a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pages_served import serving_paths

from estimator.errors import EXIT_UNREACHABLE, PlainError
from loadtest.collector.engine_metrics import EngineReading
from loadtest.conductor.processes import free_port
from loadtest.conductor.server_facts import ServerFacts
from loadtest.conductor.telemetry_facts import shown_elsewhere
from loadtest.origin import parse_origin
from loadtest.telemetry import Telemetry, telemetry_of

PAGE = (Path(__file__).parents[2] / "fixtures/metrics/vllm-0.32-loaded.txt").read_bytes()
HOST = parse_origin("http://gateway:8000")
GATEWAY = ServerFacts(models=(), version=None, reading=None)


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ULLAGE_METRICS_KEY", "ULLAGE_METRICS_KEY_FILE", "ULLAGE_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def reading(telemetry: Telemetry) -> EngineReading:
    found = shown_elsewhere(telemetry, "vllm", "tiny", HOST, GATEWAY).reading
    assert found is not None
    return found


def test_nothing_named_leaves_what_the_host_shows() -> None:
    assert shown_elsewhere(Telemetry(), "vllm", "tiny", HOST, GATEWAY) is GATEWAY


def test_two_replicas_are_a_server_of_two_engines() -> None:
    with serving_paths(lambda _: PAGE) as (url, asked):
        found = reading(telemetry_of([f"{url}/a/metrics", f"{url}/b/metrics"]))
    assert (found.signals["engines"], found.signals["running"]) == (2, 92)
    assert asked == [("/a/metrics", None), ("/b/metrics", None)]


def test_the_latest_scrape_of_a_prometheus_is_read() -> None:
    metric = {"__name__": "vllm:num_requests_running", "job": "j", "instance": "i", "engine": "0"}
    result = [{"metric": metric, "values": [[1, "3"], [2, "4"]]}]
    body = json.dumps({"status": "success", "data": {"result": result}}).encode()
    with serving_paths(lambda _: body) as (url, _):
        assert reading(telemetry_of(prometheus=url)).signals == {"engines": 1, "running": 4}


@pytest.mark.parametrize(
    ("option", "body", "said"),
    [
        ("metrics_urls", b"lmdeploy:num_requests_running 1\n", "is lmdeploy's page, not vllm's"),
        ("metrics_urls", b"<html>", "no page of an engine"),
        ("prometheus", b"<html>", "correct --prometheus"),
    ],
)
def test_a_page_that_shows_nothing_is_one_sentence(option: str, body: bytes, said: str) -> None:
    with serving_paths(lambda _: body) as (url, _), pytest.raises(PlainError, match=said) as refused:
        reading(telemetry_of(**{option: [url] if option == "metrics_urls" else url}))  # type: ignore[arg-type]
    assert refused.value.exit_code == EXIT_UNREACHABLE


def test_a_page_that_is_not_there_names_its_option() -> None:
    with pytest.raises(PlainError, match="correct --metrics-url"):
        reading(telemetry_of([f"http://127.0.0.1:{free_port()}"]))
