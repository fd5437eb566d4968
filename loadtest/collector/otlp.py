"""python -m loadtest.collector.otlp URL: sends what our own metrics page shows to an OpenTelemetry collector.

A process of its own, at low priority: neither the protobuf nor a slow receiver costs the load anything. Where
to, how often and as whom is said by the standard OTEL_* variables, which OpenTelemetry's own packages read.
It sends once more and ends when its standard input closes.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Final

import requests
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.parser import text_string_to_metric_families

SERVICE_NAME: Final = "ullage"
INTERVAL_VARIABLE: Final = "OTEL_METRIC_EXPORT_INTERVAL"
INTERVAL_MS: Final = 60_000
PAGE_TIMEOUT_S: Final = 5.0
PRIORITY_STEPS_DOWN: Final = 10
RUN: Final = "llm_loadtest_run_info"
Labels = tuple[tuple[str, str], ...]
log = logging.getLogger(__name__)


def main(arguments: list[str]) -> int:
    """Until the standard input closes."""
    (url,) = arguments
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the load, which then ends this
    os.nice(PRIORITY_STEPS_DOWN)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    exporter = OTLPMetricExporter(session=session_without_redirects())
    resource, starts = resource_of_environment(), Starts()
    is_last = False
    while not is_last:
        is_last = bool(select.select([sys.stdin], [], [], interval_s(os.environ))[0])
        families = list(text_string_to_metric_families(_page(url)))
        if families:
            now_ns = time.time_ns()
            exporter.export(metrics_data(families, resource, starts.of(families, now_ns), now_ns))
    exporter.shutdown()
    return 0


def session_without_redirects() -> requests.Session:
    """Another origin must see neither the figures nor their key: older exporters go where they are sent."""
    session = requests.Session()
    session.max_redirects = 0
    return session


def interval_s(environment: Mapping[str, str]) -> float:
    """Milliseconds in the variable; what is no positive number is said and means the default."""
    said = environment.get(INTERVAL_VARIABLE) or str(INTERVAL_MS)
    if not said.isdecimal() or int(said) == 0:
        log.warning("%s=%r is no number of milliseconds: %d it is", INTERVAL_VARIABLE, said, INTERVAL_MS)
        return INTERVAL_MS / 1000
    return int(said) / 1000


def resource_of_environment() -> Resource:
    """OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES; without a name of its own the service is ours."""
    found = Resource.create()
    name = str(found.attributes.get("service.name", ""))
    is_named = name and not name.startswith("unknown_service")
    return found if is_named else found.merge(Resource({"service.name": SERVICE_NAME}))


def _page(url: str) -> str:
    """Empty where there is none: a run that ends takes it along."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=PAGE_TIMEOUT_S) as answer:
            return str(answer.read().decode())
    except (OSError, urllib.error.URLError) as error:
        log.warning("OpenTelemetry export: no look at %s (%s)", url, error)
        return ""


class Starts:
    """Since when the counters count: a new run begins them at 0 again."""

    def __init__(self) -> None:
        self._run: str | None = None
        self._start_ns = 0

    def of(self, families: Iterable[Family], now_ns: int) -> int:
        runs = [
            sample.labels["run_id"] for family in families if family.name == RUN for sample in family.samples
        ]
        run = runs[0] if runs else None
        if run != self._run or not self._start_ns:
            self._run, self._start_ns = run, now_ns
        return self._start_ns


def metrics_data(families: Iterable[Family], resource: Resource, start_ns: int, now_ns: int) -> MetricsData:
    """The page as one export: gauges, cumulative sums and histograms by the names of the page."""
    scope = InstrumentationScope(SERVICE_NAME)
    metrics = [_metric(family, start_ns, now_ns) for family in families]
    scoped = ScopeMetrics(scope=scope, metrics=metrics, schema_url="")
    return MetricsData([ResourceMetrics(resource=resource, scope_metrics=[scoped], schema_url="")])


def _metric(family: Family, start_ns: int, now_ns: int) -> Metric:
    data: Gauge | Sum | Histogram
    cumulative = AggregationTemporality.CUMULATIVE
    if family.type == "histogram":
        data = Histogram(list(_histograms(family, start_ns, now_ns)), cumulative)
    elif family.type == "counter":
        totals = [sample for sample in family.samples if sample.name == f"{family.name}_total"]
        points = [NumberDataPoint(s.labels, start_ns, now_ns, s.value) for s in totals]
        data = Sum(points, cumulative, is_monotonic=True)
    else:
        data = Gauge([NumberDataPoint(s.labels, 0, now_ns, s.value) for s in family.samples])
    return Metric(name=family.name, description=family.documentation, unit="", data=data)


def _histograms(family: Family, start_ns: int, now_ns: int) -> Iterator[HistogramDataPoint]:
    """Prometheus counts what is below each edge, OpenTelemetry what lies between two."""
    below: dict[Labels, list[tuple[float, int]]] = {}
    sums: dict[Labels, float] = {}
    for sample in family.samples:
        labels = tuple((name, value) for name, value in sorted(sample.labels.items()) if name != "le")
        if sample.name.endswith("_bucket"):
            below.setdefault(labels, []).append((float(sample.labels["le"]), int(sample.value)))
        elif sample.name.endswith("_sum"):
            sums[labels] = sample.value
    for labels, edges in below.items():
        counts = [count for _, count in edges]
        yield HistogramDataPoint(
            attributes=dict(labels),
            start_time_unix_nano=start_ns,
            time_unix_nano=now_ns,
            count=counts[-1],
            sum=sums[labels],
            bucket_counts=[later - earlier for earlier, later in pairwise([0, *counts])],
            explicit_bounds=[edge for edge, _ in edges[:-1]],
            min=None,  # type: ignore[arg-type]  # not known; the encoder leaves it out
            max=None,  # type: ignore[arg-type]
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
