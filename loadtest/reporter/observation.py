"""What a load test showed, as frozen values; how it was found is in stages, walls and saturation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from loadtest.reporter.uneven import Uneven
from loadtest.scenario import Limits
from loadtest.search_result import SearchResult
from loadtest.sequential.trend import Slope

Series = tuple[tuple[float, float], ...]
"""Points of (seconds since the run's first stage, value)."""
WallName = Literal[
    "none", "invalid", "client", "network", "admission", "kv", "slots", "prefill", "slo", "plateau"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """One stage in time, monotonic nanoseconds; `settled_ns` is where judging begins."""

    index: int
    label: str
    users: int
    start_ns: int
    settled_ns: int
    end_ns: int
    rate_per_s: float | None = None
    """Open loop: requests were due at this rate, and `users` is how many could be in flight."""
    has_pauses: bool = False
    """Users think between their requests: they are in flight for a part of the time."""

    @property
    def fixes_concurrency(self) -> bool:
        """Users who ask again at once are so many requests at any moment; else nobody sets that number."""
        return self.rate_per_s is None and not self.has_pauses

    @property
    def window_s(self) -> float:
        return (self.end_ns - self.settled_ns) / 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Wall:
    """What stopped the growth, with the figures that say so."""

    name: WallName
    evidence: str
    runner_up: Wall | None = None
    """The next rule that fits as well, where there is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientHealth:
    """Can the load generator be trusted? `faults` is empty when it can. None: not seen."""

    send_lateness_p99_s: float | None
    loop_lag_s: float | None
    """Median over the seconds of each second's worst lateness of a timer."""
    cpu_max_ratio: float | None
    parked_ratio: float | None
    """Share of the requests in flight that the server counts neither as running nor as waiting: median."""
    gc_pause_s: float | None = None
    """The longest garbage collection, seconds of processor time."""
    gc_total_s: float | None = None
    """All of them up to here, of the process that collected most."""
    parked_mostly_ratio: float | None = None
    """The same in four looks of five: at least so large."""
    faults: tuple[str, ...]
    halts: tuple[str, ...] = ()
    """Those of them that spoil a stage whatever else it shows: nobody asked the server meanwhile."""
    burst_ratio: float | None = None
    """Share of the answers whose tokens came mostly several to a read, while the client was on time."""
    steal_ratio: float | None = None
    """Of the processor time of its machine, what the hypervisor gave to others: the mean over the seconds."""
    steal_max_ratio: float | None = None
    """The same of the worst second. Excuses nothing, and explains a client that was late."""
    cpu_wait_ratio: float | None = None
    """Of its time, what a thread of it was ready for and had no processor: the mean over the seconds."""
    cpu_wait_max_ratio: float | None = None
    """The same of the worst second. Excuses nothing either."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantiles:
    """Exact quantiles of one latency over the cohort's good requests, seconds."""

    p50_s: float
    p95_s: float
    p99_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstTokens:
    """Mean time to first token of the same span of time, by the client's clock and by the server's own."""

    client_s: float
    server_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRate:
    """Output tokens a second as they came in a window, and its standard error from batches of that window.

    The tokens of the answers that ended there are another figure, and a noisier one: some began long before.
    """

    per_s: float
    error_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StageObservation:
    """One stage as client and server saw it. None: the server did not show it. Concurrencies are requests."""

    index: int
    label: str
    users: int
    """Parallel requests of this level: the users that were set, or the mean in flight where those pause or
    requests come at a rate."""
    users_set: int
    """Users that were asked for; of an open loop, how many could be in flight."""
    rate_per_s: float | None = None
    window_s: float
    in_flight_mean: float
    running_mean: float | None
    running_max: float | None
    waiting_mean: float | None
    waiting_median: float | None
    """At least so many waited in more than half of the looks: of two in the middle, the lower."""
    queue_from: float
    """Waiting requests in the median that are a queue: more than come within two engine steps anyway."""
    kv_usage_mean_ratio: float | None
    kv_usage_max_ratio: float | None
    preemptions: float | None
    """Over the whole stage: one while it settles is one too many, unless a rate of them is allowed."""
    preempted_in_window: float | None = None
    looks: int
    """How often the server was looked at in the window, and how often in vain."""
    looks_in_vain: int
    requests: int
    cancelled: int
    """Ended by us before they broke a limit: they say nothing of the server and are not judged."""
    outcomes: Mapping[str, int]
    violations: bytes
    """In order of start, one byte a request: 1 where it broke a limit or did not succeed."""
    slo_violations: int
    ttft: Quantiles | None
    tpot: Quantiles | None
    e2e: Quantiles | None
    requests_per_s: float
    output_tokens_per_s: float
    shortfall: str
    """Why the load that was set did not reach the server; empty where it did."""
    little_ratio: float | None
    """Throughput x mean time / mean in flight; 1 when the instrument's own figures agree (Little)."""
    client: ClientHealth
    faults: tuple[str, ...]
    """Why the stage did not hold, one sentence each; empty when it held."""
    waiting_growth: Slope | None = None
    """Requests a second by which the queue grew over the window."""
    prefix_hit_ratio: float | None = None
    """Share of the prompt tokens looked up in the prefix cache that were found there."""
    first_tokens: FirstTokens | None = None
    uneven: Uneven | None = None
    """Where some engines were full while others had room."""
    token_rate: TokenRate | None = None

    @property
    def held(self) -> bool:
        return not self.faults

    @property
    def name(self) -> str:
        return f"{self.users} users" if self.rate_per_s is None else f"{self.rate_per_s:g} requests/s"

    @property
    def is_fully_seen(self) -> bool:
        """False where the server did not show what could have broken the stage unseen."""
        return self.preemptions is not None and self.waiting_median is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What the load test found. `n_slo` is None when no latency limit is set."""

    stages: tuple[StageObservation, ...]
    n_max: int
    n_slo: int | None
    first_broken: StageObservation | None
    is_monotone: bool
    wall: Wall
    server_died: bool
    given_up_with: int | None
    """Exit code of what ended the load before its plan was over; None when nothing did."""
    client: ClientHealth
    unknowns: tuple[str, ...]
    percentile: float
    limits: Limits
    requests: int
    outcomes: Mapping[str, int]
    damaged_lines: int
    kv_usage: Series
    running: Series
    waiting: Series
    start_ns: int
    """Where the time axis of the series and windows begins."""
    windows: tuple[Window, ...]
    search: SearchResult | None = None
    """What found the limit, where that was a search: its verdict is the run's."""
    notes: tuple[str, ...] = ()
    """What was not judged, and what a figure takes for granted: whole sentences."""

    @property
    def breaks(self) -> int | None:
        """The smallest concurrency that did not hold; None: none was seen."""
        if self.search is not None:
            return self.search.breaks
        return None if self.first_broken is None else self.first_broken.users
