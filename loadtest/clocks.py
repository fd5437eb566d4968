"""How far a worker's clock is from the master's: ping-pongs -> an offset with its uncertainty. Pure.

Where a ping was answered at `far_ns` of the other clock, the answer was given somewhere between the sending
and the hearing: the middle is the best guess, and half of the round trip the most it can be wrong by.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from loadtest.records import Event

CLOCK_ERROR_NS_MAX: Final = 5_000_000
"""Rows that are off by more are not joined with the stages and the server's metrics of another clock."""
Phase = Literal["before", "during", "after"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ping:
    """One ping-pong: sent and heard by the master's clock, answered by the worker's. Nanoseconds."""

    sent_ns: int
    far_ns: int
    heard_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Offset:
    """What the worker's clock shows less what the master's shows at the same moment, nanoseconds."""

    offset_ns: int
    uncertainty_ns: int

    @property
    def may_be_none(self) -> bool:
        """The two may be one clock."""
        return abs(self.offset_ns) <= self.uncertainty_ns

    def apart_ns(self, before: Offset) -> int:
        """How far the clocks have moved against each other since `before`."""
        return abs(self.offset_ns - before.offset_ns)


def offset_of(pings: Sequence[Ping]) -> Offset:
    """By the ping with the shortest round trip: every other one only waited longer somewhere."""
    best = min(pings, key=lambda ping: ping.heard_ns - ping.sent_ns)
    # rounded up, so that the true offset is never outside
    uncertainty_ns = (best.heard_ns - best.sent_ns + 1) // 2
    return Offset(offset_ns=best.far_ns - best.sent_ns - uncertainty_ns, uncertainty_ns=uncertainty_ns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One comparison of clocks, as an event of the run keeps it."""

    worker: int
    host: str
    phase: Phase
    offset: Offset

    def data(self) -> dict[str, str | int | float | bool | None]:
        return {
            "worker": self.worker,
            "host": self.host,
            "phase": self.phase,
            "offset_ns": self.offset.offset_ns,
            "uncertainty_ns": self.offset.uncertainty_ns,
        }


def measured(events: Iterable[Event]) -> dict[int, list[Measured]]:
    """The comparisons of each worker, in the order of the events."""
    found: dict[int, list[Measured]] = {}
    for event in events:
        if event.event == "clock":
            one = _measured(event.data)
            found.setdefault(one.worker, []).append(one)
    return found


def _measured(data: Mapping[str, str | int | float | bool | None]) -> Measured:
    phases: Mapping[str, Phase] = {"before": "before", "after": "after"}
    return Measured(
        worker=int(data["worker"] or 0),
        host=str(data["host"]),
        phase=phases.get(str(data["phase"]), "during"),
        offset=Offset(offset_ns=int(data["offset_ns"] or 0), uncertainty_ns=int(data["uncertainty_ns"] or 0)),
    )


def clock_fault(comparisons: Sequence[Measured]) -> str | None:
    """Why this worker's times may not be joined with the master's; None where they may.

    Its rows carry its clock less the offset before the load. Before and after the load the clocks must be
    known to agree with that; in the load, where answers wait, it is enough that they are not known to differ.
    """
    before = comparisons[0].offset
    for one in comparisons:
        apart_ns, unsure_ns = one.offset.apart_ns(before), one.offset.uncertainty_ns
        if one.phase == "during":
            unsure_ns = -unsure_ns
        if apart_ns + unsure_ns > CLOCK_ERROR_NS_MAX:
            return (
                f"the clock of w{one.worker:02d} on {one.host} was compared to "
                f"{one.offset.uncertainty_ns / 1e6:.1f} ms {_WHEN[one.phase]} and had moved by "
                f"{apart_ns / 1e6:.1f} ms: more than {CLOCK_ERROR_NS_MAX / 1e6:.0f} ms together, so its rows "
                "belong to no stage"
            )
    return None


_WHEN: Final[Mapping[Phase, str]] = {
    "before": "before the load",
    "during": "during the load",
    "after": "after the load",
}
