"""Looks at servers, devices and load processes, held small: a day as it was, longer runs thinned out evenly.

A look as an object costs 1.6 KB, of three days at three targets 1.3 GB. Held here it costs 0.3 KB, and of a
target there are never more than LOOKS_MAX.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from loadtest.records import Sample

LOOKS_MAX: Final = 99_999
"""Of one target: 28 hours of a look a second."""
THIN_BY: Final = 3
"""Odd: two processes that answer in turn are both still seen."""
WORST_SINCE_LAST: Final = ("client_loop_lag_max_s", "client_gc_pause_max_s")
"""By their own meaning a look that stands for several says the worst of them."""


class Signals(Mapping[str, float]):
    """What one look saw. Looks at one target share the names."""

    __slots__ = ("_at", "_values")

    def __init__(self, at: Mapping[str, int], values: array[float]) -> None:
        self._at = at
        self._values = values

    def __getitem__(self, name: str) -> float:
        return self._values[self._at[name]]

    def __contains__(self, name: object) -> bool:
        return name in self._at

    def __iter__(self) -> Iterator[str]:
        return iter(self._at)

    def __len__(self) -> int:
        return len(self._at)


@dataclass(slots=True, kw_only=True)
class _Series:
    """The looks at one target."""

    looks_max: int
    every: int = 1
    """Of so many looks one is kept: the last."""
    kept: list[Sample] = field(default_factory=list)
    skipped: list[Sample] = field(default_factory=list)
    names: dict[tuple[str, ...], dict[str, int]] = field(default_factory=dict)

    def see(self, sample: Sample) -> None:
        self.skipped.append(self._small(sample))
        if len(self.skipped) < self.every:
            return
        self.kept.append(self._one_of(self.skipped))
        self.skipped = []
        if len(self.kept) >= self.looks_max:
            threes = [self.kept[at : at + THIN_BY] for at in range(0, len(self.kept), THIN_BY)]
            self.kept = [self._one_of(three) for three in threes]
            self.every *= THIN_BY

    def _small(self, sample: Sample) -> Sample:
        names = tuple(sample.signals)
        at = self.names.get(names)
        if at is None:
            at = self.names[names] = {name: index for index, name in enumerate(names)}
        like = self.kept[0] if self.kept else sample
        signals = Signals(at, array("d", sample.signals.values()))
        return replace(sample, target=like.target, labels=like.labels, signals=signals)

    def _one_of(self, looks: Sequence[Sample]) -> Sample:
        last = looks[-1]
        worst = {
            name: max(look.signals.get(name, 0.0) for look in looks)
            for name in WORST_SINCE_LAST
            if name in last.signals
        }
        if all(value <= last.signals[name] for name, value in worst.items()):
            return last
        return self._small(replace(last, signals={**last.signals, **worst}))


class HeldSamples:
    """Takes looks in any order of targets, each target's in order of time."""

    def __init__(self, looks_max: int = LOOKS_MAX) -> None:
        self._looks_max = looks_max
        self._series: dict[tuple[str, ...], _Series] = {}

    def add(self, sample: Sample) -> None:
        key = (
            sample.source,
            sample.target,
            *(word for pair in sorted(sample.labels.items()) for word in pair),
        )
        if key not in self._series:
            self._series[key] = _Series(looks_max=self._looks_max)
        self._series[key].see(sample)

    def in_order(self) -> tuple[Sample, ...]:
        """By time; what no later look made up for is there too."""
        looks = (look for series in self._series.values() for look in (*series.kept, *series.skipped[-1:]))
        return tuple(sorted(looks, key=lambda look: look.at_ns))
