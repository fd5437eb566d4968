"""Before the load: the pages a person named are read once, so that a wrong address is found at once."""

from __future__ import annotations

from dataclasses import replace

from estimator.errors import EXIT_UNREACHABLE, PlainError
from estimator.spec import EngineName
from loadtest.access import Access
from loadtest.collector.engine_metrics import EngineReading, read_engine_page
from loadtest.collector.joined import joined_readings
from loadtest.collector.prometheus import PrometheusError, discovery, figures, scrapes_of, servers_of
from loadtest.conductor.server_facts import Answer, ServerFacts, ask
from loadtest.origin import ApiKey, Origin, key_of_page, parse_origin, read_metrics_key
from loadtest.telemetry import Page, Telemetry, pages_of


class TelemetryUnreachable(PlainError):  # noqa: N818  (reads as what happened)
    """A page that was named shows nothing: one sentence that names the fix."""

    exit_code = EXIT_UNREACHABLE


def shown_elsewhere(
    telemetry: Telemetry, engine: EngineName, model: str, origin: Origin, facts: ServerFacts
) -> ServerFacts:
    """`facts` with the reading of the pages, or the Prometheus, that a person named. Raises PlainError."""
    pages = pages_of(telemetry.metrics_urls, origin.access, "--metrics-url")
    if pages:
        return replace(facts, reading=joined_readings([_reading(page, engine, origin) for page in pages]))
    if telemetry.prometheus is not None:
        return replace(facts, reading=_scraped(telemetry, engine, model, origin.access))
    return facts


def _reading(page: Page, engine: EngineName, host: Origin) -> EngineReading:
    answer = _asked(page.origin, page.path, key_of_page(page.origin, host), "--metrics-url")
    reading = read_engine_page(answer.body.decode("utf-8", errors="replace"))
    if reading.engine != engine:
        shown = f"{reading.engine}'s page" if reading.engine else "no page of an engine"
        raise TelemetryUnreachable(f"{page} is {shown}, not {engine}'s: correct --metrics-url or --engine")
    return reading


def _scraped(telemetry: Telemetry, engine: EngineName, model: str, access: Access) -> EngineReading:
    """The latest scrape of each server."""
    assert telemetry.prometheus is not None
    origin = parse_origin(telemetry.prometheus, access, "--prometheus")
    key = read_metrics_key()
    try:
        path = discovery(engine, model, telemetry.prometheus_selector)
        servers = servers_of(_asked(origin, path, key, "--prometheus").body)
        answer = _asked(origin, figures(engine, servers), key, "--prometheus")
        latest = {scrape.server: scrape.reading for scrape in scrapes_of(answer.body, engine, servers)}
    except PrometheusError as error:
        raise TelemetryUnreachable(f"{origin}: {error}") from error
    return joined_readings(list(latest.values()))


def _asked(origin: Origin, path: str, key: ApiKey | None, option: str) -> Answer:
    try:
        answer = ask(origin, path, key)
    except PlainError as error:
        said = str(error).partition(";")[0]
        raise TelemetryUnreachable(f"{said}; correct {option}, or leave it out") from error
    if answer.status != 200:
        wants = "set ULLAGE_METRICS_KEY" if answer.status in (401, 403) else f"correct {option}"
        raise TelemetryUnreachable(f"{origin}{path.partition('?')[0]} answered {answer.status}: {wants}")
    return answer
