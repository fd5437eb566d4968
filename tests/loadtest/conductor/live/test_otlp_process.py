"""OpenTelemetry's standard variables turn the export on and off; what hinders it is one sentence."""

from __future__ import annotations

import pytest

from loadtest.collector.otlp import interval_s
from loadtest.conductor.live.otlp_process import hindrance, is_asked_for

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}
PAGE = "http://127.0.0.1:9099/metrics"


@pytest.mark.parametrize(
    ("environment", "asked"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_SERVICE_NAME": "x"}, False),
        (ENDPOINT, True),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://127.0.0.1:4318/v1/metrics"}, True),
        ({**ENDPOINT, "OTEL_SDK_DISABLED": "true"}, False),
        ({**ENDPOINT, "OTEL_METRICS_EXPORTER": "none"}, False),
        ({**ENDPOINT, "OTEL_METRICS_EXPORTER": "console,otlp"}, True),
    ],
)
def test_only_an_endpoint_asks_for_it(environment: dict[str, str], asked: bool) -> None:
    assert is_asked_for(environment) is asked


def test_what_hinders_names_its_fix() -> None:
    grpc = {**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    assert hindrance(ENDPOINT, PAGE, is_installed=True) is None
    assert "pip install 'ullage[otel]'" in (hindrance(ENDPOINT, PAGE, is_installed=False) or "")
    assert "OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf" in (hindrance(grpc, PAGE, is_installed=True) or "")
    assert "--exporter-port" in (hindrance(ENDPOINT, None, is_installed=True) or "")


@pytest.mark.parametrize(
    ("said", "interval"), [("", 60.0), ("300", 0.3), ("5000", 5.0), ("0", 60.0), ("soon", 60.0)]
)
def test_the_interval_is_the_standard_one_unless_it_is_a_number_of_milliseconds(
    said: str, interval: float
) -> None:
    assert interval_s({"OTEL_METRIC_EXPORT_INTERVAL": said}) == interval
