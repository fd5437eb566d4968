"""The flags of a load: where the figures of server and GPUs are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

from loadtest.telemetry import (
    GPU_METRICS_URL_VARIABLE,
    METRICS_URL_VARIABLE,
    PROMETHEUS_SELECTOR_VARIABLE,
    PROMETHEUS_VARIABLE,
    Telemetry,
    telemetry_of,
)

Command = Callable[..., Any]


def telemetry_flags(command: Command) -> Command:
    """--metrics-url, --gpu-metrics-url, --prometheus and --prometheus-selector."""
    for option in (
        click.option(
            "--prometheus-selector",
            envvar=PROMETHEUS_SELECTOR_VARIABLE,
            metavar="MATCHERS",
            help="Label matchers of this run's servers there; default: those that show the model.",
        ),
        click.option(
            "--prometheus",
            envvar=PROMETHEUS_VARIABLE,
            metavar="URL",
            help="A Prometheus that scrapes the server: it is asked, and no page is scraped.",
        ),
        click.option(
            "--gpu-metrics-url",
            envvar=GPU_METRICS_URL_VARIABLE,
            multiple=True,
            metavar="URL",
            help="Page of a GPU exporter (DCGM, nvidia_gpu_exporter, AMD); once for each.",
        ),
        click.option(
            "--metrics-url",
            envvar=METRICS_URL_VARIABLE,
            multiple=True,
            metavar="URL",
            help="Metrics page of a replica behind the host, once for each; default: the host's /metrics.",
        ),
    ):
        command = option(command)
    return command


def telemetry_from(options: Mapping[str, Any]) -> Telemetry:
    """Raises PlainError for what is no URL, or names two sources of one figure."""
    return telemetry_of(
        options["metrics_url"],
        options["gpu_metrics_url"],
        options["prometheus"],
        options["prometheus_selector"],
    )
