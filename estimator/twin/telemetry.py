"""What the twin counts about itself, and the /metrics page made of it in the words of one engine.

Gauges and counters are read from the engine when the page is asked for; only histograms are fed as steps
go by. Which families a page has is a table: vllm_page.py, lmdeploy_page.py. They are written out here and
not by prometheus_client, which takes five times as long: a scrape must not hold up the streams.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, Literal

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from estimator.twin.profile import TwinProfile
from estimator.twin.scheduler import Scheduler

COUNTERS: Final = (
    *("preemptions", "prompt_tokens", "generation_tokens", "prefix_cache_queries", "prefix_cache_hits"),
)
"""Of `Engine.stats`."""
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
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
    cached_tokens: int = 0
    """Of the prompt, found in the prefix cache."""


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
    """The facts of one simulated engine, the one of this data-parallel rank."""

    def __init__(self, engine: Scheduler, profile: TwinProfile, page: Page, rank: int = 0) -> None:
        self.engine = engine
        self.profile = profile
        self.labels = {"model_name": profile.served_model_name, "engine": str(rank)}
        self.page = page
        self.reset()
        self.snapshot = self.state()

    def reset(self) -> None:
        """Every counter and histogram from 0 again, as after a restart; the engine goes on."""
        self._base: dict[str, int] = {name: getattr(self.engine.stats, name) for name in COUNTERS}
        self.cached_tokens = 0
        """Tokens of the prompts counted so far that were found in the prefix cache."""
        self.tallies = {name: Tally(bounds) for name, bounds in self.page.buckets(self.profile).items()}
        self.lateness = Tally(LATENESS_S)
        self.finished_by_reason: Counter[str] = Counter()

    def since_reset(self, name: str) -> int:
        """A cumulative counter of the engine, one of COUNTERS."""
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
            "cached": counts.cached_tokens,
            "computed": counts.prompt_tokens - counts.cached_tokens,
        }
        for name, value in seen.items():
            self.observe(name, value)
        self.finished_by_reason[counts.finish_reason] += 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """How one engine's /metrics looks."""

    families: tuple[Family, ...]
    buckets: Callable[[TwinProfile], Mapping[str, Sequence[float]]]
    """Bounds of the histograms it keeps, by the names `Telemetry.observe` knows."""
    others: Callable[[Metrics], Iterator[Metric]]
    """Families of another form, such as an info metric."""


class Metrics:
    """A server's /metrics: the facts of each of its engines, of its front end and of its process."""

    def __init__(self, telemetries: Sequence[Telemetry], page: Page) -> None:
        self.telemetries = tuple(telemetries)
        self.rejections: Counter[str] = Counter()
        """Requests the front end did not let in, by the limit they met."""
        self._page = page
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._registry.register(_Others(self))

    @property
    def profile(self) -> TwinProfile:
        return self.telemetries[0].profile

    def reset(self) -> None:
        """Every counter and histogram from 0 again, as after a restart."""
        self.rejections.clear()
        for telemetry in self.telemetries:
            telemetry.reset()

    def page(self) -> tuple[bytes, str]:
        """The page and its content type: Prometheus text 0.0.4."""
        families = (*self._page.families, OWN_LATENESS)
        lines = [line for family in families for line in _lines(family, self.telemetries)]
        return generate_latest(self._registry) + "".join(lines).encode(), CONTENT_TYPE

    def others(self) -> Iterator[Metric]:
        return self._page.others(self)


OWN_LATENESS: Final = Family(
    kind="histogram",
    name="ullage_twin_step_lateness_seconds",
    text="Seconds from the moment a simulated step ends to its last token being handed to the kernel.",
    read=lambda telemetry: telemetry.lateness,
)


class _Others(Collector):
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        return self._metrics.others()


def _lines(family: Family, telemetries: Iterable[Telemetry]) -> Iterator[str]:
    """One family of all engines, as prometheus_client writes it: labels in the order of their names."""
    name = f"{family.name}_total" if family.kind == "counter" else family.name
    yield f"# HELP {name} {family.text}\n# TYPE {name} {family.kind}\n"
    for telemetry in telemetries:
        values, labels = family.read(telemetry), telemetry.labels
        if isinstance(values, Tally):
            ranges = values.cumulative
            before, after = _labels(labels, "le", "|").split('"|"')
            for bound, count in ranges:
                yield f'{name}_bucket{before}"{bound}"{after} {count}\n'
            yield f"{name}_count{_labels(labels)} {ranges[-1][1]}\n"
            yield f"{name}_sum{_labels(labels)} {values.total}\n"
        elif isinstance(values, Mapping):
            for value, number in values.items():
                yield f"{name}{_labels(labels, family.by, value)} {float(number)}\n"
        else:
            yield f"{name}{_labels(labels)} {float(values)}\n"


def _labels(labels: Mapping[str, str], by: str = "", value: str = "") -> str:
    named = sorted({**labels, by: value}.items()) if by else sorted(labels.items())
    return "{" + ",".join([f'{name}="{_escaped(text)}"' for name, text in named]) + "}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def one_two_five(largest: int) -> tuple[float, ...]:
    """1, 2, 5, 10, ... up to `largest`: the buckets both engines give token counts."""
    series = (digit * 10**power for power in range(12) for digit in (1, 2, 5))
    return tuple(float(bound) for bound in series if bound <= largest)
