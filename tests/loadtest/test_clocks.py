"""Clocks of two machines: what ping-pongs say of them, and what they cannot."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.clocks import (
    CLOCK_ERROR_NS_MAX,
    Measured,
    Offset,
    Phase,
    Ping,
    clock_fault,
    measured,
    offset_of,
)
from loadtest.records import Event
from loadtest.row_file import decode_line, encode_row

MS = 1_000_000
spans_ns = st.integers(min_value=0, max_value=10**9)


def ping(sent_ns: int, there_ns: int, back_ns: int, ahead_ns: int) -> Ping:
    """As it goes when the ways there and back take so long."""
    far_ns = sent_ns + there_ns + ahead_ns
    return Ping(sent_ns=sent_ns, far_ns=far_ns, heard_ns=sent_ns + there_ns + back_ns)


def compared(offset_ms: float, uncertainty_ms: float, phase: Phase) -> Measured:
    offset = Offset(offset_ns=int(offset_ms * MS), uncertainty_ns=int(uncertainty_ms * MS))
    return Measured(worker=3, host="loader-2", phase=phase, offset=offset)


def test_the_ping_that_waited_least_is_believed() -> None:
    pings = [
        ping(0, 9 * MS, 1 * MS, ahead_ns=70 * MS),  # waited for the worker: looks 4 ms more
        ping(20 * MS, MS // 10, MS // 5, ahead_ns=70 * MS),
        ping(40 * MS, 1 * MS, 30 * MS, ahead_ns=70 * MS),
    ]
    offset = offset_of(pings)
    assert offset.offset_ns == 70 * MS - MS // 20
    assert offset.uncertainty_ns == 3 * MS // 20


@given(
    ways=st.lists(st.tuples(spans_ns, spans_ns), min_size=1, max_size=12),
    ahead_ns=st.integers(min_value=-(10**15), max_value=10**15),
)
def test_the_true_offset_is_never_outside_however_the_round_trip_divides(
    ways: list[tuple[int, int]], ahead_ns: int
) -> None:
    offset = offset_of([ping(number * 10**10, *way, ahead_ns) for number, way in enumerate(ways)])
    assert abs(offset.offset_ns - ahead_ns) <= offset.uncertainty_ns
    assert offset.may_be_none or ahead_ns


@pytest.mark.parametrize(
    ("later", "is_fault"),
    [
        (compared(100.0, 0.2, "after"), False),
        (compared(103.0, 1.0, "after"), False),
        (compared(104.5, 1.0, "after"), True),
        (compared(100.0, 5.1, "after"), True),
        (compared(100.0, 40.0, "during"), False),  # the worker was busy: that is no evidence
        (compared(107.0, 1.0, "during"), True),
        (compared(93.0, 1.0, "during"), True),
    ],
)
def test_clocks_that_moved_or_cannot_be_compared_are_a_fault(later: Measured, is_fault: bool) -> None:
    fault = clock_fault([compared(100.0, 0.1, "before"), later])
    assert (fault is not None) == is_fault
    assert fault is None or "w03 on loader-2" in fault


def test_a_clock_that_was_never_known_closely_is_a_fault() -> None:
    assert clock_fault([compared(0.0, CLOCK_ERROR_NS_MAX / MS + 0.1, "before")]) is not None


def test_comparisons_come_back_from_the_rows_of_a_run() -> None:
    told = [compared(100.25, 0.125, "before"), compared(-7.0, 3.0, "during"), compared(100.5, 0.25, "after")]
    rows = [decode_line(encode_row(Event(at_ns=1, event="clock", data=one.data()))[:-1]) for one in told]
    assert measured(row for row in rows if isinstance(row, Event)) == {3: told}
