"""Serves our own metrics on loopback in the process that decides the load: gevent's server, no thread."""

from __future__ import annotations

import logging
from typing import Final

from gevent.pywsgi import WSGIServer
from prometheus_client import CollectorRegistry, make_wsgi_app

from loadtest.collector.exporter import RunPage
from loadtest.conductor.standing import Standing

HOST: Final = "127.0.0.1"
log = logging.getLogger(__name__)
"""Locust's own log: a line there is no sentence of ours about the run."""


class MetricsServer:
    """Listens at once, and until `stop`. `port` 0 takes a free one; a port that is taken costs no run."""

    def __init__(self, standing: Standing, port: int) -> None:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(RunPage(standing.figures))
        self._server = WSGIServer((HOST, port), make_wsgi_app(registry), log=None, error_log=None)
        try:
            self._server.start()
        except OSError as error:
            log.warning("no metrics on %s:%d: %s; give --exporter-port another", HOST, port, error.strerror)
        else:
            log.info("metrics on http://%s:%d/metrics", HOST, self._server.server_port)

    def stop(self) -> None:
        """Whoever is being answered gets the end of it."""
        self._server.stop()
