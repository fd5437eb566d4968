"""What an existing Prometheus scraped of the server -> the rows a look at its pages makes, at true times.

Raw samples are asked for (a range vector), not interpolated ones: all samples of one scrape carry one time,
so a scrape is read exactly as a page is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlencode

from estimator.spec import EngineName
from loadtest.collector.engine_metrics import EngineReading, names_of, reading_of
from loadtest.collector.joined import joined_looks
from loadtest.collector.series import Series, number_of
from loadtest.records import Sample

RUNNING: Final[Mapping[EngineName, str]] = {
    "vllm": "vllm:num_requests_running",
    "lmdeploy": "lmdeploy:num_requests_running",
}
LOOK_BACK_S: Final = 60
"""Longer than a scrape interval, so that no scrape is missed; each is taken once."""
QUERY_PATH: Final = "/api/v1/query"
SPECIAL: Final = re.compile(r"([\\.+*?()|{}\[\]^$])")
SERVER_LABELS: Final = ("job", "instance")

Server = tuple[str, str]
"""job and instance."""


class PrometheusError(Exception):
    """No figures: the reason, in one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scraped:
    """One scrape of one server, Unix seconds."""

    server: Server
    unix_s: float
    reading: EngineReading


def discovery(engine: EngineName, model: str, selector: str | None) -> str:
    """Path and query that name the servers of this run: those that show the model, or as a person said."""
    matchers = selector or f'model_name="{_quoted(model)}"'
    return _path(f"{RUNNING[engine]}{{{matchers}}}")


def servers_of(answer: bytes) -> tuple[Server, ...]:
    """The servers of a discovery's answer. Raises PrometheusError when there is none."""
    found = {_server(one["metric"]) for one in _result(answer)}
    if not found:
        raise PrometheusError(
            "Prometheus has no series of this model's server: correct --prometheus-selector"
        )
    return tuple(sorted(found))


def figures(engine: EngineName, servers: Sequence[Server], look_back_s: int = LOOK_BACK_S) -> str:
    """Path and query for all that was scraped of these servers in the last `look_back_s` seconds."""
    jobs, instances = ({_escaped(server[at]) for server in servers} for at in (0, 1))
    matchers = [
        f'__name__=~"{"|".join(sorted(names_of(engine)))}"',
        f'job=~"{"|".join(sorted(jobs))}"',
        f'instance=~"{"|".join(sorted(instances))}"',
    ]
    return _path(f"{{{','.join(matchers)}}}[{look_back_s}s]")


def scrapes_of(answer: bytes, engine: EngineName, servers: Sequence[Server]) -> list[Scraped]:
    """Every scrape in the answer, oldest first. Raises PrometheusError."""
    pages: dict[tuple[float, Server], dict[str, list[Series] | None]] = {}
    for one in _result(answer):
        server = _server(one["metric"])
        if server not in servers:
            continue
        name = str(one["metric"].get("__name__"))
        labels = {key: str(value) for key, value in one["metric"].items() if key not in SERVER_LABELS}
        labels.pop("__name__", None)
        for unix_s, text in one.get("values", ()):
            page = pages.setdefault((float(unix_s), server), {})
            family, value = page.setdefault(name, []), number_of(str(text))
            if family is None or value is None:
                page[name] = None  # as on a page: without one of its series there is no sum
            else:
                family.append(Series(labels=labels, value=value))
    return [
        Scraped(server=server, unix_s=unix_s, reading=reading_of(page, engine))
        for (unix_s, server), page in sorted(pages.items(), key=lambda one: one[0])
    ]


@dataclass(slots=True, kw_only=True)
class Rounds:
    """Scrapes that have been told already, and those of a round in which a server is still missing.

    A round is whole when every server has been scraped once more; `wall_less_mono_ns` is by how much Unix
    time is ahead of the rows' clock.
    """

    engine: EngineName
    prometheus: str
    servers: Sequence[Server]
    wall_less_mono_ns: int
    _told_s: dict[Server, float] = field(default_factory=dict)
    _round: dict[Server, Sample] = field(default_factory=dict)

    def rows(self, scrapes: Sequence[Scraped], not_before_ns: int) -> list[Sample]:
        """Rows of the rounds that have become whole; scrapes before `not_before_ns` are of no interest."""
        rows: list[Sample] = []
        for scrape in scrapes:
            if scrape.unix_s <= self._told_s.get(scrape.server, 0.0):
                continue
            self._told_s[scrape.server] = scrape.unix_s
            sample = self._sample(scrape)
            if sample.at_ns < not_before_ns:
                continue
            self._round[scrape.server] = sample
            if len(self._round) == len(self.servers):
                rows += joined_looks([self._round[server] for server in self.servers])
                self._round.clear()
        return rows

    def _sample(self, scrape: Scraped) -> Sample:
        is_bare = not scrape.reading.signals
        return Sample(
            at_ns=round(scrape.unix_s * 1000) * 1_000_000 - self.wall_less_mono_ns,
            source="engine",
            target=scrape.server[1],
            gap=f"no known metric name of {self.engine} in the scrape" if is_bare else None,
            signals=scrape.reading.signals,
            labels={"engine": self.engine, "via": f"prometheus {self.prometheus}"},
        )


def _result(answer: bytes) -> Sequence[Mapping[str, Any]]:
    try:
        body = json.loads(answer)
        if body["status"] != "success":
            raise PrometheusError(f"Prometheus refuses the query: {str(body.get('error'))[:200]!r}")
        result = body["data"]["result"]
        if not all(isinstance(one["metric"], dict) for one in result):
            raise TypeError
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise PrometheusError("the answer is not that of a Prometheus API: correct --prometheus") from error
    return list(result)


def _server(metric: Mapping[str, Any]) -> Server:
    return str(metric.get("job", "")), str(metric.get("instance", ""))


def _path(query: str) -> str:
    return f"{QUERY_PATH}?{urlencode({'query': query})}"


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _escaped(text: str) -> str:
    return _quoted(SPECIAL.sub(r"\\\1", text))
