"""What the twin counts about itself, and the /metrics page made of it in the words of one engine.

Gauges and counters are read from the engine when the page is asked for; only histograms are fed as steps
go by. Which families a page has is a table: vllm_page.py, lmdeploy_page.py.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, Literal

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from estimator.twin.engine import Engine
from estimator.twin.profile import TwinProfile

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
ENGINE: Final = "0"
LATENESS_S: Final = (
    0.0005,
    0.001,
    0.002,
    0.003,
    0.005,
    0.0075,
    0.01,
    0.015,
    0.02,
    0.03,
    0.05,
    0.1,
    0.25,
    1.0,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestTimes:
    """The timeline of a finished request, seconds on the server's clock."""

    arrived_s: float
    scheduled_s: float
    first_token_s: float
    last_token_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestCounts:
    """The sizes of a finished request."""

    prompt_tokens: int
    output_tokens: int
    max_tokens: int
    preemptions: int
    finish_reason: str


class Tally:
    """A Prometheus histogram that takes many equal observations at the price of one."""

    __slots__ = ("_counts", "bounds", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(float(bound) for bound in bounds)
        self.total = 0.0
        self._counts = [0] * (len(bounds) + 1)

    def observe(self, value: float, times: int = 1) -> None:
        self._counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    @property
    def cumulative(self) -> list[tuple[str, float]]:
        """("0.3", 2.0), ... ("+Inf", all): what the page writes."""
        bounds = (*self.bounds, float("inf"))
        counts = zip(bounds, accumulate(self._counts), strict=True)
        return [("+Inf" if bound == float("inf") else str(bound), float(count)) for bound, count in counts]


Values = float | Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One metric of a page: a number, or numbers by the values of one more label."""

    kind: Literal["gauge", "counter", "histogram"]
    name: str
    text: str
    read: Callable[[Telemetry], Values | Tally]
    by: str = ""


class Telemetry:
    """The facts of one simulated server. `page` writes them down."""

    def __init__(self, engine: Engine, profile: TwinProfile, page: Page) -> None:
        self.engine = engine
        self.profile = profile
        self.labels = {"model_name": profile.served_model_name, "engine": ENGINE}
        self._page = page
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._registry.register(_Families(self))
        self.reset()
        self.snapshot = self.state()

    def reset(self) -> None:
        """Every counter and histogram from 0 again, as after a restart; the engine goes on."""
        stats = self.engine.stats
        self._base: dict[str, int] = {
            name: getattr(stats, name) for name in ("preemptions", "prompt_tokens", "generation_tokens")
        }
        self.tallies = {name: Tally(bounds) for name, bounds in self._page.buckets(self.profile).items()}
        self.lateness = Tally(LATENESS_S)
        self.finished_by_reason: Counter[str] = Counter()

    def since_reset(self, name: str) -> int:
        """A cumulative counter of the engine: "preemptions", "prompt_tokens" or "generation_tokens"."""
        return int(getattr(self.engine.stats, name)) - self._base[name]

    def state(self) -> Mapping[str, float]:
        """The engine's gauges at this moment; requests beyond max_num_seqs have no handle in LMDeploy yet."""
        engine = self.engine
        running = len(engine.running)
        in_flight = running + len(engine.waiting)
        routed = min(in_flight, self.profile.max_num_seqs)
        return {
            "running": running,
            "waiting": max(0, routed - running),
            "routed": routed,
            "api_waiting": in_flight - routed,
            "succeeded": self.finished_by_reason.total(),
            "kv_usage": engine.pool.usage,
        }

    def observe(self, name: str, value: float, times: int = 1) -> None:
        """Feeds the histogram `name` where this page has one."""
        tally = self.tallies.get(name)
        if tally is not None:
            tally.observe(value, times)

    def finished(self, times: RequestTimes, counts: RequestCounts) -> None:
        """Feeds the histograms of one request that ran to its end."""
        arrived, scheduled = times.arrived_s, times.scheduled_s
        first, last = times.first_token_s, times.last_token_s
        gaps = counts.output_tokens - 1
        seen = {
            "e2e": last - arrived,
            "queue": scheduled - arrived,
            "prefill": first - scheduled,
            "decode": last - first,
            "inference": last - scheduled,
            "request_tpot": (last - first) / gaps if gaps else 0.0,
            "prompt": counts.prompt_tokens,
            "output": counts.output_tokens,
            "max_tokens": counts.max_tokens,
            "preemptions": counts.preemptions,
            "cached": 0,
        }
        for name, value in seen.items():
            self.observe(name, value)
        self.finished_by_reason[counts.finish_reason] += 1

    def page(self) -> tuple[bytes, str]:
        """The page and its content type: Prometheus text 0.0.4."""
        return generate_latest(self._registry), CONTENT_TYPE

    def families(self) -> Iterator[Metric]:
        """Those of the engine's page, then the twin's own."""
        for family in (*self._page.families, OWN_LATENESS):
            yield _metric(family, family.read(self), self.labels)
        yield from self._page.others(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """How one engine's /metrics looks."""

    families: tuple[Family, ...]
    buckets: Callable[[TwinProfile], Mapping[str, Sequence[float]]]
    """Bounds of the histograms it keeps, by the names `Telemetry.observe` knows."""
    others: Callable[[Telemetry], Iterator[Metric]]
    """Families of another form, such as an info metric."""


OWN_LATENESS: Final = Family(
    kind="histogram",
    name="ullage_twin_step_lateness_seconds",
    text="Seconds from the moment a simulated step ends to its last token being handed to the kernel.",
    read=lambda telemetry: telemetry.lateness,
)


class _Families(Collector):
    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        return self._telemetry.families()


def _metric(family: Family, values: Values | Tally, labels: Mapping[str, str]) -> Metric:
    names, held = [*labels, *([family.by] if family.by else [])], list(labels.values())
    if isinstance(values, Tally):
        histogram = HistogramMetricFamily(family.name, family.text, labels=names)
        histogram.add_metric(held, values.cumulative, values.total)
        return histogram
    made = (CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily)(
        family.name, family.text, labels=names
    )
    for reason, value in values.items() if isinstance(values, Mapping) else [("", values)]:
        made.add_metric([*held, reason] if family.by else held, value)
    return made


def one_two_five(largest: int) -> tuple[float, ...]:
    """1, 2, 5, 10, ... up to `largest`: the buckets both engines give token counts."""
    series = (digit * 10**power for power in range(12) for digit in (1, 2, 5))
    return tuple(float(bound) for bound in series if bound <= largest)
