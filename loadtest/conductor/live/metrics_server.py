"""Serves our own metrics in the process that decides the load: gevent's server, no thread."""

from __future__ import annotations

import logging

from gevent.pywsgi import WSGIServer
from prometheus_client import CollectorRegistry, make_wsgi_app

from loadtest.collector.exporter import RunPage
from loadtest.conductor.live.standing import Standing

log = logging.getLogger(__name__)
"""Locust's own log: a line there is no sentence of ours about the run."""


class MetricsServer:
    """Listens at once, and until `stop`. `port` 0 takes a free one; a port that is taken costs no run."""

    def __init__(self, standing: Standing, host: str, port: int) -> None:
        self.url: str | None = None
        """Where the page is; None where the port was taken."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(RunPage(standing.figures))
        self._server = WSGIServer((host, port), make_wsgi_app(registry), log=None, error_log=None)
        try:
            self._server.start()
        except OSError as error:
            log.warning("no metrics on %s:%d: %s; give --exporter-port another", host, port, error.strerror)
        else:
            named = f"[{host}]" if ":" in host else host
            self.url = f"http://{named}:{self._server.server_port}/metrics"
            log.info("metrics on %s", self.url)

    def stop(self) -> None:
        """Whoever is being answered gets the end of it."""
        self._server.stop()
