"""One look at a server's pages, at a Prometheus that scrapes it, or at a GPU exporter; a gap is a row too."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import aiohttp

from estimator.spec import EngineName
from loadtest.collector.gpu import GpuLook
from loadtest.collector.gpu_page import read_gpu_page
from loadtest.collector.joined import joined_looks
from loadtest.collector.page import PageError, PageTarget, fetch, look_at_page
from loadtest.collector.prometheus import (
    LOOK_BACK_S,
    PrometheusError,
    Rounds,
    discovery,
    figures,
    scrapes_of,
    servers_of,
)
from loadtest.origin import ApiKey, Origin, parse_origin, read_metrics_key
from loadtest.records import Sample
from loadtest.run_folder import Manifest
from loadtest.telemetry import Page, Telemetry

SILENT_NS: Final = LOOK_BACK_S * 1_000_000_000
"""So long without a new scrape is a gap; a scrape interval is shorter."""


async def look_at_pages(session: aiohttp.ClientSession, targets: Sequence[PageTarget]) -> list[Sample]:
    """All pages at once; the row of the whole server comes first."""
    return joined_looks(await asyncio.gather(*(look_at_page(session, target) for target in targets)))


async def look_at_gpu_page(session: aiohttp.ClientSession, page: Page) -> Sequence[GpuLook]:
    """The devices on the page, or one gap; no key is sent there."""
    try:
        body = await fetch(session, str(page), None)
    except PageError as error:
        return (GpuLook(device=str(page), gap=str(error)),)
    return await asyncio.to_thread(read_gpu_page, body.decode("utf-8", errors="replace"), str(page))


@dataclass(frozen=True, slots=True, kw_only=True)
class PrometheusSource:
    """A Prometheus, and which of its series are this run's."""

    origin: Origin
    engine: EngineName
    model: str
    selector: str | None
    key: ApiKey | None
    began_ns: int
    wall_less_mono_ns: int


def prometheus_source(telemetry: Telemetry, manifest: Manifest) -> PrometheusSource | None:
    """None where pages are scraped. Raises PlainError for a key that cannot be used."""
    if telemetry.prometheus is None:
        return None
    return PrometheusSource(
        origin=parse_origin(telemetry.prometheus, manifest.access, "--prometheus"),
        engine=manifest.engine,
        model=manifest.model,
        selector=telemetry.prometheus_selector,
        key=read_metrics_key(),
        began_ns=manifest.mono_ns,
        wall_less_mono_ns=manifest.wall_ns - manifest.mono_ns,
    )


class PrometheusWatch:
    """Asks again and again, and tells every scrape once."""

    def __init__(self, source: PrometheusSource, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        self._source = source
        self._clock = clock
        self._rounds: Rounds | None = None
        self._told_ns = clock()

    async def look(self, session: aiohttp.ClientSession) -> list[Sample]:
        """Rows of the scrapes that are new; a gap when there is no answer, or nothing new for long."""
        try:
            rows = await self._new_rows(session)
        except (PageError, PrometheusError) as error:
            return [self._gap(str(error))]
        if rows:
            self._told_ns = self._clock()
        elif self._clock() - self._told_ns > SILENT_NS:
            return [self._gap(f"no new scrape of the whole server for {LOOK_BACK_S} s")]
        return rows

    async def _new_rows(self, session: aiohttp.ClientSession) -> list[Sample]:
        source = self._source
        if self._rounds is None:
            answer = await self._ask(session, discovery(source.engine, source.model, source.selector))
            self._rounds = Rounds(
                engine=source.engine,
                prometheus=str(source.origin),
                servers=servers_of(answer),
                wall_less_mono_ns=source.wall_less_mono_ns,
            )
        servers = self._rounds.servers
        answer = await self._ask(session, figures(source.engine, servers))
        scrapes = await asyncio.to_thread(scrapes_of, answer, source.engine, servers)
        return self._rounds.rows(scrapes, source.began_ns)

    async def _ask(self, session: aiohttp.ClientSession, path: str) -> bytes:
        return await fetch(session, f"{self._source.origin}{path}", self._source.key)

    def _gap(self, reason: str) -> Sample:
        return Sample(
            at_ns=self._clock(),
            source="engine",
            target=str(self._source.origin),
            gap=reason,
            labels={"engine": self._source.engine},
        )
