"""What a load process tells the one that decides the load, once a second: its counts and its health."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from loadtest.live_counts import LiveCounts
from loadtest.records import SIGNALS, Outcome
from loadtest.scenario import Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """`signals` are those of the process's last client sample; none before its first."""

    run_id: str
    worker: int
    signals: Mapping[str, float]
    counts: LiveCounts


def news_of(message: Mapping[str, Any], limits: Limits) -> News:
    """Raises KeyError, TypeError or ValueError where it is none: anybody may reach a master's port."""
    counts = LiveCounts(limits)
    counts.merge(message["counts"])
    if unknown := counts.outcomes.keys() - set(get_args(Outcome)):
        raise ValueError(f"no outcome: {sorted(unknown)}")
    signals = {str(name): float(value) for name, value in message["signals"].items() if name in SIGNALS}
    return News(run_id=str(message["run_id"]), worker=int(message["worker"]), signals=signals, counts=counts)


def added_up(news: Iterable[News], limits: Limits) -> LiveCounts:
    """The counts of all load processes together."""
    total = LiveCounts(limits)
    for one in news:
        total.merge(one.counts.message())
    return total
