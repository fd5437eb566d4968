"""An OpenTelemetry collector of a few lines: keeps what it is sent, decoded."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric


@dataclass
class Received:
    url: str = ""
    exports: list[ExportMetricsServiceRequest] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: set[str] = field(default_factory=set)

    def resource(self) -> dict[str, str]:
        """Of the last export."""
        return attributes(self.exports[-1].resource_metrics[0].resource.attributes)

    def metrics(self) -> dict[str, Metric]:
        """Of the last export, by name."""
        (of_resource,) = self.exports[-1].resource_metrics
        return {metric.name: metric for scope in of_resource.scope_metrics for metric in scope.metrics}


def attributes(pairs: Iterator[KeyValue]) -> dict[str, str]:
    return {pair.key: pair.value.string_value for pair in pairs}


@contextmanager
def receiver(sends_to: str | None = None, status: int = 307) -> Iterator[Received]:
    """`sends_to`: an address that everything is redirected to."""
    received = Received()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.headers.append(dict(self.headers))
            received.paths.add(self.path)
            received.exports.append(ExportMetricsServiceRequest.FromString(body))
            self.send_response(200 if sends_to is None else status)
            if sends_to is not None:
                self.send_header("Location", sends_to + self.path)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Says nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        received.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield received
        finally:
            server.shutdown()
            thread.join()
