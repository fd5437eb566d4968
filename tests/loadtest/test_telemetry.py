"""Where figures are read is said once, and what cannot be meant is refused in one sentence."""

from __future__ import annotations

import pytest

from estimator.errors import PlainError
from loadtest.access import Access
from loadtest.origin import key_of_page, parse_origin, read_metrics_key
from loadtest.telemetry import Telemetry, pages_of, telemetry_of

HOST = parse_origin("http://gateway:8000")


def test_nothing_said_is_the_hosts_own_page() -> None:
    assert telemetry_of() == telemetry_of([""], [""], "", "") == Telemetry()


def test_urls_may_be_given_one_by_one_or_with_commas_between() -> None:
    assert telemetry_of(["http://a:1, http://b:2/m", "http://c:3"]).metrics_urls == (
        "http://a:1",
        "http://b:2/m",
        "http://c:3",
    )


def test_a_url_without_a_path_is_its_metrics_page() -> None:
    access = Access(insecure=True)
    bare, named = pages_of(["https://a:1", "https://a:1/replica/metrics"], access, "--metrics-url")
    assert (str(bare), str(named)) == ("https://a:1/metrics", "https://a:1/replica/metrics")
    assert bare.origin.access == access


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"metrics_urls": ["a:8000"]}, "--metrics-url 'a:8000' must look like"),
        ({"metrics_urls": ["http://a:1", "http://a:1/metrics"]}, "given twice"),
        ({"metrics_urls": ["http://a:1"], "prometheus": "http://p:9090"}, "not both"),
        ({"gpu_metrics_urls": ["http://me:pw@a:1"]}, "--gpu-metrics-url must not carry a user"),
        ({"prometheus": "ftp://p"}, "--prometheus 'ftp://p' must look like"),
        ({"prometheus_selector": 'job="x"'}, "give that too"),
        ({"prometheus": "http://p:9090", "prometheus_selector": 'job="x"} or vector(1'}, "label matchers"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(said: dict[str, object], sentence: str) -> None:
    with pytest.raises(PlainError, match=sentence) as refused:
        telemetry_of(**said)  # type: ignore[arg-type]
    assert "\n" not in str(refused.value)
    assert refused.value.exit_code == 2


def test_several_matchers_are_a_selector() -> None:
    said = telemetry_of(prometheus="http://p:9090", prometheus_selector='job="vllm", instance=~"gpu1.*"')
    assert said.prometheus_selector == 'job="vllm", instance=~"gpu1.*"'


def headers(page: str, **environ: str) -> str | None:
    key = key_of_page(parse_origin(page), HOST, environ)
    return None if key is None else key.header()[1]


def test_the_hosts_key_goes_to_the_host_alone() -> None:
    assert headers("http://gateway:8000", ULLAGE_API_KEY="sk-API") == "Bearer sk-API"
    assert headers("http://replica:8000", ULLAGE_API_KEY="sk-API") is None


def test_the_pages_own_key_goes_to_every_page_that_was_named() -> None:
    keys = {"ULLAGE_API_KEY": "sk-API", "ULLAGE_METRICS_KEY": "sk-METRICS"}
    assert headers("http://gateway:8000", **keys) == "Bearer sk-METRICS"
    assert headers("http://replica:8000", **keys) == "Bearer sk-METRICS"


def test_the_pages_key_may_lie_in_a_file_of_ones_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("keys") / "key"
    path.write_text("sk-FILE\n")
    path.chmod(0o600)
    key = read_metrics_key({"ULLAGE_METRICS_KEY_FILE": str(path)})
    assert key is not None
    assert key.header()[1] == "Bearer sk-FILE"
    path.chmod(0o640)
    with pytest.raises(PlainError, match="chmod 600"):
        read_metrics_key({"ULLAGE_METRICS_KEY_FILE": str(path)})
