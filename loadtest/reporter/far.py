"""What workers on other machines did to a run: rows that did not come, clocks that cannot be joined. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from loadtest.clocks import Measured, clock_fault, measured
from loadtest.records import Event


def far_fault(events: Sequence[Event]) -> str | None:
    """Why the rows of the run belong to no stage, or are not all of them; None where neither is so."""
    missing = [str(event.data["reason"]) for event in events if event.event == "fault" and _voids(event)]
    apart = [fault for one in measured(events).values() if (fault := clock_fault(one)) is not None]
    return "; ".join((*missing, *apart)) or None


def _voids(event: Event) -> bool:
    return bool(event.data.get("voids"))


def clock_notes(events: Sequence[Event]) -> list[str]:
    """A sentence for each worker whose clock is another than the master's."""
    return [_note(one) for one in measured(events).values()]


def _note(comparisons: Sequence[Measured]) -> str:
    before, last = comparisons[0], comparisons[-1]
    moved_ns = last.offset.offset_ns - before.offset.offset_ns
    unsure_ns = before.offset.uncertainty_ns + last.offset.uncertainty_ns
    moved = (
        f"it had moved by {moved_ns / 1e6:+.2f} ms (give or take {unsure_ns / 1e6:.2f}) when last compared"
    )
    return (
        f"w{before.worker:02d} ran on {before.host}: its clock shows {before.offset.offset_ns / 1e9:+.3f} s "
        f"beside the master's, which was taken off its rows and is known to "
        f"{before.offset.uncertainty_ns / 1e6:.2f} ms; "
        f"{moved if len(comparisons) > 1 else 'it was compared once'}"
    )
