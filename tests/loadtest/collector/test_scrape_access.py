"""The collector reaches the server as the manifest says, and gives the key to that server alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fake_run import FakeRun

from loadtest.access import Access
from loadtest.collector.scrape import ScrapePlan, _parse, _plan
from loadtest.telemetry import telemetry_of

ACCESS = Access(insecure=True, api_key_variable="TEAM_KEY")
MANIFEST = replace(FakeRun(stages=()).manifest, host="https://llm.example:8443/team", access=ACCESS)


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ULLAGE_API_KEY", "ULLAGE_API_KEY_FILE", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TEAM_KEY", "sk-CANARY")


def plan(target: str) -> ScrapePlan:
    return _plan(_parse(["--run-folder", "x", "--engine", "vllm", "--target", target]), MANIFEST)


def test_the_loaded_servers_page_is_reached_as_the_load_reaches_it() -> None:
    target = plan("https://llm.example:8443").targets[0]
    assert target.origin.access == ACCESS
    assert target.key is not None
    assert target.key.header() == ("Authorization", "Bearer sk-CANARY")


@pytest.mark.parametrize(
    "elsewhere", ["https://metrics.example:8443", "https://llm.example:9090", "http://llm.example:8443"]
)
def test_a_page_of_another_origin_gets_no_key(elsewhere: str) -> None:
    assert plan(elsewhere).targets[0].key is None


def watched(**said: object) -> ScrapePlan:
    manifest = replace(MANIFEST, telemetry=telemetry_of(**said))  # type: ignore[arg-type]
    return _plan(_parse(["--run-folder", "x", "--engine", "vllm", "--target", MANIFEST.host]), manifest)


def test_the_pages_of_the_manifest_stand_in_for_the_hosts_own() -> None:
    plan = watched(metrics_urls=["https://a:1", "https://b:2/m"])
    assert [target.url for target in plan.targets] == ["https://a:1/metrics", "https://b:2/m"]
    assert [target.key for target in plan.targets] == [None, None]
    assert plan.access == ACCESS


def test_gpu_pages_stand_in_for_the_gpus_of_this_machine() -> None:
    assert watched().open_gpus is not None
    plan = watched(gpu_metrics_urls=["https://a:9400"])
    assert (plan.open_gpus, [str(page) for page in plan.gpu_pages]) == (None, ["https://a:9400/metrics"])


def test_a_prometheus_is_asked_for_the_model_in_the_rows_own_time() -> None:
    source = watched(prometheus="https://p:9090").prometheus
    assert source is not None
    assert (source.model, source.engine, str(source.origin)) == (MANIFEST.model, "vllm", "https://p:9090")
    assert source.wall_less_mono_ns == MANIFEST.wall_ns - MANIFEST.mono_ns
    assert source.key is None  # the API's key is the loaded server's
