"""A level of the load while it is held: what load processes and server have shown of it so far. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from loadtest.live_counts import LiveCounts, Timing
from loadtest.records import Sample
from loadtest.run_folder import PlannedStage


@dataclass(slots=True, kw_only=True)
class Level:
    """One stage. `before` are the run's counts when it had settled, `counts` what came since."""

    stage: PlannedStage
    began_ns: int
    before: LiveCounts
    counts: LiveCounts
    is_settled: bool = False
    looked_ns: int
    """When `counts` were taken; the last time is the end of the level."""
    waiting: list[float] = field(default_factory=list)
    kv_max_ratio: float | None = None
    preemptions: float | None = None
    """Over the whole level: one while it settles is one too many. None: the server shows none."""

    @property
    def settled_ns(self) -> int:
        return self.began_ns + int((self.stage.settle_s or 0.0) * 1e9)

    @property
    def judged_s(self) -> float:
        """Seconds since it had settled."""
        return max(0.0, (self.looked_ns - self.settled_ns) / 1e9)

    def look(self, total: LiveCounts, now_ns: int) -> None:
        """The run's counts as of now."""
        if not self.is_settled and now_ns >= self.settled_ns:
            self.before, self.is_settled = total, True
        self.counts, self.looked_ns = total.since(self.before), now_ns

    def see(self, sample: Sample, preempted: float | None) -> None:
        """One look at the server; `preempted` since the look before, None where it shows no such counter."""
        if preempted is not None:
            self.preemptions = (self.preemptions or 0.0) + preempted
        if sample.at_ns < self.settled_ns:
            return
        if (waiting := sample.signals.get("waiting")) is not None:
            self.waiting.append(waiting)
        if (usage := sample.signals.get("kv_usage_ratio")) is not None:
            self.kv_max_ratio = max(usage, self.kv_max_ratio or 0.0)


def mean_s(counts: LiveCounts, timing: Timing) -> float | None:
    """Exact; None before the first request."""
    spread = counts.spreads[timing]
    return spread.sum_s / spread.count if spread.count else None


def signals_added(workers: Mapping[str, Mapping[str, float]], signal: str) -> float | None:
    """Over all load processes; None where none shows it."""
    seen = [signals[signal] for signals in workers.values() if signal in signals]
    return sum(seen) if seen else None
