"""Starts the process that sends our own metrics by OpenTelemetry, where the standard variables ask for it."""

from __future__ import annotations

import importlib.util
import logging
import subprocess
import sys
from collections.abc import Mapping
from typing import Final

from loadtest.conductor.processes import end_process

ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
PROTOCOL: Final = "http/protobuf"
PACKAGE: Final = "opentelemetry.exporter.otlp.proto.http"
LAST_EXPORT_S: Final = 5.0
"""So long the end of the load process may wait for a last export."""
log = logging.getLogger(__name__)


def is_asked_for(environment: Mapping[str, str]) -> bool:
    """An endpoint is named, and nothing turns it off."""
    is_off = environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    exporters = (environment.get("OTEL_METRICS_EXPORTER") or "otlp").lower().split(",")
    is_ours = "otlp" in map(str.strip, exporters)
    return is_ours and not is_off and any(environment.get(name) for name in ENDPOINTS)


def hindrance(environment: Mapping[str, str], page_url: str | None, *, is_installed: bool) -> str | None:
    """Why nothing can be sent, and what to do; None where nothing hinders."""
    if page_url is None:
        return "it reads our own metrics page, and there is none: give --exporter-port a free port"
    protocol = next((environment[name] for name in PROTOCOLS if environment.get(name)), PROTOCOL)
    if protocol != PROTOCOL:
        return f"it speaks {PROTOCOL} and not {protocol}: set {PROTOCOLS[1]}={PROTOCOL}"
    if not is_installed:
        return "its packages are not installed: pip install 'ullage[otel]'"
    return None


class OtlpProcess:
    """Sends from now until `stop`, which has the last figures sent. What hinders it costs no run."""

    def __init__(self, environment: Mapping[str, str], page_url: str | None) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        if not is_asked_for(environment):
            return
        reason = hindrance(environment, page_url, is_installed=_is_installed())
        if reason is not None or page_url is None:
            log.warning("no OpenTelemetry export: %s", reason)
            return
        command = [sys.executable, "-m", "loadtest.collector.otlp", page_url]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)  # noqa: S603

    def stop(self) -> None:
        if self._process is None or self._process.stdin is None:
            return
        self._process.stdin.close()
        try:
            self._process.wait(timeout=LAST_EXPORT_S)
        except subprocess.TimeoutExpired:
            log.warning("the last OpenTelemetry export did not end within %.0f s", LAST_EXPORT_S)
            end_process(self._process)


def _is_installed() -> bool:
    try:
        return importlib.util.find_spec(PACKAGE) is not None
    except ModuleNotFoundError:  # not even a parent of it
        return False
