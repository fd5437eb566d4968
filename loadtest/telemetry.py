"""Where the figures of server and GPUs are read during a run, if not at the host itself and its machine."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from estimator.errors import PlainError
from loadtest.access import Access
from loadtest.origin import Origin, OriginError, parse_origin

METRICS_URL_VARIABLE: Final = "ULLAGE_METRICS_URL"
GPU_METRICS_URL_VARIABLE: Final = "ULLAGE_GPU_METRICS_URL"
PROMETHEUS_VARIABLE: Final = "ULLAGE_PROMETHEUS"
PROMETHEUS_SELECTOR_VARIABLE: Final = "ULLAGE_PROMETHEUS_SELECTOR"
METRICS_PATH: Final = "/metrics"
MATCHERS: Final = re.compile(r'\s*\w+\s*(?:=~|!~|!=|=)\s*"(?:[^"\\]|\\.)*"\s*')


class TelemetryError(PlainError, ValueError):
    """The figures cannot be read so: one sentence that names the fix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A metrics page: `origin` without its path, and the path."""

    origin: Origin
    path: str = METRICS_PATH

    def __str__(self) -> str:
        return f"{self.origin}{self.path}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Telemetry:
    """What a person said of it; nothing here is secret. Empty: the host's /metrics, and NVML on its machine.

    `metrics_urls` are the pages of all replicas behind the host, which are added up. `prometheus` is the base
    of a server that scrapes them already; `prometheus_selector` are label matchers that pick the servers of
    this run, by default those that show the model.
    """

    metrics_urls: tuple[str, ...] = ()
    gpu_metrics_urls: tuple[str, ...] = ()
    prometheus: str | None = None
    prometheus_selector: str | None = None

    def __post_init__(self) -> None:
        if self.metrics_urls and self.prometheus is not None:
            raise TelemetryError("give --metrics-url or --prometheus, not both: a figure has one source")
        if self.prometheus_selector is not None:
            if self.prometheus is None:
                raise TelemetryError("--prometheus-selector picks series of --prometheus: give that too")
            if not re.fullmatch(f"{MATCHERS.pattern}(?:,{MATCHERS.pattern})*", self.prometheus_selector):
                raise TelemetryError(
                    f"--prometheus-selector {self.prometheus_selector!r} must be label matchers such as "
                    'job="vllm",instance=~"gpu1.*"'
                )
        if self.prometheus is not None:
            parse_origin(self.prometheus, option="--prometheus")
        pages_of(self.metrics_urls, Access(), "--metrics-url")
        pages_of(self.gpu_metrics_urls, Access(), "--gpu-metrics-url")


def telemetry_of(
    metrics_urls: Iterable[str] = (),
    gpu_metrics_urls: Iterable[str] = (),
    prometheus: str | None = None,
    prometheus_selector: str | None = None,
) -> Telemetry:
    """Of options and variables: one URL each, or several with commas or blanks between. Raises PlainError."""
    return Telemetry(
        metrics_urls=_apart(metrics_urls),
        gpu_metrics_urls=_apart(gpu_metrics_urls),
        prometheus=prometheus or None,
        prometheus_selector=prometheus_selector or None,
    )


def pages_of(urls: Iterable[str], access: Access, option: str) -> tuple[Page, ...]:
    """A URL without a path means /metrics there. Raises OriginError."""
    pages: list[Page] = []
    for url in urls:
        base = parse_origin(url, access, option)
        origin = Origin(scheme=base.scheme, host=base.host, port=base.port, access=access)
        page = Page(origin=origin, path=base.path or METRICS_PATH)
        if page in pages:
            raise OriginError(f"{option} {page} is given twice, and would be counted twice: leave one out")
        pages.append(page)
    return tuple(pages)


def _apart(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(url for text in texts for url in re.split(r"[\s,]+", text) if url)
