"""The collector reaches the server as the manifest says, and gives the key to that server alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fake_run import FakeRun

from loadtest.access import Access
from loadtest.collector.scrape import ScrapePlan, _parse, _plan

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
