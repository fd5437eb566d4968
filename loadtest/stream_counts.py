"""How evenly tokens came: gaps between chunks of many requests, counted in slots at most 1/64 wide.

Every gap of a run is too much to keep, one row a request too little for the quantiles of them all. A slot
holds the gaps that share their seven leading binary digits, so its middle is within GAP_ERROR_MAX of each;
how many gaps there were, their sum and the sum of their squares are exact.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from operator import add, mul, rshift
from typing import Final

from loadtest import native
from loadtest.records import StreamCounts

DIGITS: Final = 7
SLOTS_AN_OCTAVE: Final = 1 << (DIGITS - 1)
GAP_ERROR_MAX: Final = 1 / (2 * SLOTS_AN_OCTAVE)
"""Relative: half a slot. A quantile of the slots is that close to the quantile of the gaps."""
SECOND_NS: Final = 10**9


def slot_of(gap_ns: int) -> int:
    """The number of the slot that holds this gap; longer gaps never have a lower one."""
    shift = _shift_of(gap_ns)
    return shift * SLOTS_AN_OCTAVE + (gap_ns >> shift)


def _shift_of(gap_ns: int) -> int:
    """How many binary digits of a gap its slot does not tell; the same for all of an octave."""
    return max(0, gap_ns.bit_length() - DIGITS)


def slot_start_ns(slot: int) -> int:
    """The shortest gap of a slot."""
    shift = max(0, slot // SLOTS_AN_OCTAVE - 1)
    return (slot - shift * SLOTS_AN_OCTAVE) << shift


def slot_middle_ns(slot: int) -> float:
    return (slot_start_ns(slot) + slot_start_ns(slot + 1) - 1) / 2


@dataclass(slots=True)
class Gaps:
    """Gaps of any number of requests, added up."""

    count: int = 0
    sum_ns: int = 0
    sum_squares_ns2: int = 0
    slots: Counter[int] = field(default_factory=Counter)
    chunks: Counter[int] = field(default_factory=Counter)
    """Token events by the second of the clock they came in."""

    def add(self, sorted_gaps_ns: array[int], token_ns: array[int]) -> None:
        """One request: its gaps, the shortest first, and when its token events came, in order.

        Costs a few steps for each slot or octave and each second it touches; the rest is done in C.
        """
        self.count += len(sorted_gaps_ns)
        if native.gaps is not None:
            sum_ns, sum_squares_ns2 = native.gaps.count_gaps(sorted_gaps_ns, self.slots)
            native.gaps.count_seconds(token_ns, self.chunks)
        else:
            sum_ns, sum_squares_ns2 = sum(sorted_gaps_ns), sum(map(mul, sorted_gaps_ns, sorted_gaps_ns))
            self._count(sorted_gaps_ns)
            self._count_seconds(token_ns)
        self.sum_ns += sum_ns
        self.sum_squares_ns2 += sum_squares_ns2

    def _count(self, gaps_ns: Sequence[int]) -> None:
        """Slot by slot where they are few, as of an even stream; else gap by gap, in C. Same as slot_of."""
        at = 0
        while at < len(gaps_ns):
            shift = _shift_of(gaps_ns[at])
            end, base = bisect_left(gaps_ns, 1 << (shift + DIGITS), at), shift * SLOTS_AN_OCTAVE
            first, last = gaps_ns[at] >> shift, gaps_ns[end - 1] >> shift
            if 4 * (last - first) > end - at:
                self.slots.update(map(add, map(rshift, gaps_ns[at:end], repeat(shift)), repeat(base)))
                at = end
                continue
            for leading in range(first, last + 1):
                upto = bisect_left(gaps_ns, (leading + 1) << shift, at, end)
                if upto > at:
                    self.slots[base + leading] += upto - at
                at = upto

    def _count_seconds(self, token_ns: Sequence[int]) -> None:
        at = 0
        while at < len(token_ns):
            second = token_ns[at] // SECOND_NS
            end = bisect_left(token_ns, (second + 1) * SECOND_NS, at)
            self.chunks[second] += end - at
            at = end

    def merge(self, row: StreamCounts) -> None:
        self.count += row.gaps
        self.sum_ns += row.gap_sum_ns
        self.sum_squares_ns2 += row.gap_sum_squares_ns2
        self.slots.update({int(slot): count for slot, count in row.gap_slots.items()})
        self.chunks.update({int(second): count for second, count in row.chunks.items()})

    @property
    def mean_s(self) -> float:
        """Exact; 0 without a gap."""
        return self.sum_ns / self.count / 1e9 if self.count else 0.0

    @property
    def std_s(self) -> float:
        """Of the population, exact: the sums are whole numbers. 0 without a gap."""
        if not self.count:
            return 0.0
        spread_ns2 = self.count * self.sum_squares_ns2 - self.sum_ns**2
        return math.sqrt(spread_ns2) / self.count / 1e9

    def quantiles_s(self, *shares: float) -> list[float]:
        """Interpolated between neighbours as numpy.percentile does, within GAP_ERROR_MAX; 0 without a gap."""
        ordered = sorted(self.slots.items())
        return [_interpolated_ns(ordered, share * (self.count - 1)) / 1e9 for share in shares]


def _interpolated_ns(ordered: Sequence[tuple[int, int]], rank: float) -> float:
    below, part = divmod(rank, 1.0)
    low, high = _ranked_ns(ordered, int(below)), _ranked_ns(ordered, int(below) + 1)
    return low + (high - low) * part


def _ranked_ns(ordered: Sequence[tuple[int, int]], rank: int) -> float:
    """The middle of the slot that holds the gap with so many shorter ones before it; the last one beyond."""
    middle_ns, seen = 0.0, 0
    for slot, count in ordered:
        middle_ns = slot_middle_ns(slot)
        seen += count
        if seen > rank:
            break
    return middle_ns


class Tally:
    """Counts the streams of one load process by the second in which their requests were intended."""

    def __init__(self, worker: int) -> None:
        self._worker = worker
        self._seconds: dict[int, Gaps] = {}

    def add(self, intended_ns: int, sorted_gaps_ns: array[int], token_ns: array[int]) -> None:
        second = intended_ns // SECOND_NS
        gaps = self._seconds.get(second)
        if gaps is None:
            gaps = self._seconds[second] = Gaps()
        gaps.add(sorted_gaps_ns, token_ns)

    def taken(self) -> Iterator[StreamCounts]:
        """What was counted since the last time, a row a second; rows of one second add up."""
        seconds, self._seconds = self._seconds, {}
        for second, gaps in seconds.items():
            yield StreamCounts(
                worker=self._worker,
                second=second,
                gaps=gaps.count,
                gap_sum_ns=gaps.sum_ns,
                gap_sum_squares_ns2=gaps.sum_squares_ns2,
                gap_slots={str(slot): count for slot, count in sorted(gaps.slots.items())},
                chunks={str(at): count for at, count in sorted(gaps.chunks.items())},
            )


def added_up(rows: Iterable[StreamCounts], first_second: int, end_second: int) -> Gaps:
    """All of these rows whose requests were intended in the seconds [first, end) of the clock."""
    total = Gaps()
    for row in rows:
        if first_second <= row.second < end_second:
            total.merge(row)
    return total
