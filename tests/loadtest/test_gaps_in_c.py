"""What is in C gives what Python gives, and says so where it cannot."""

from __future__ import annotations

from array import array
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest import native
from loadtest.stream_counts import SECOND_NS, slot_of

if native.gaps is None:
    pytest.skip("what is in C was not built here, or is turned off", allow_module_level=True)

times_lists = st.lists(st.integers(0, 2**62) | st.integers(0, 10**8), max_size=300).map(sorted)


@given(times_lists)
def test_gaps_are_the_sorted_differences(times_ns: list[int]) -> None:
    gaps_ns = array("q", times_ns[1:])
    native.gaps.sort_gaps(gaps_ns, times_ns[0] if times_ns else 0)
    assert gaps_ns.tolist() == sorted(b - a for a, b in pairwise(times_ns))


@given(st.lists(st.integers(0, 2**55 - 1) | st.integers(15_000_000, 25_000_000), max_size=300).map(sorted))
def test_gaps_are_added_to_the_slots_that_hold_them_and_summed_exactly(gaps_ns: list[int]) -> None:
    slots = Counter({slot_of(20_000_000): 3})
    wanted = slots + Counter(map(slot_of, gaps_ns))
    assert native.gaps.count_gaps(array("q", gaps_ns), slots) == (
        sum(gaps_ns),
        sum(gap * gap for gap in gaps_ns),
    )
    assert slots == wanted


@given(st.lists(st.integers(0, 2**62) | st.integers(0, 10**10), max_size=300).map(sorted))
def test_times_are_added_to_the_seconds_they_are_in(times_ns: list[int]) -> None:
    chunks = Counter({2: 1})
    wanted = chunks + Counter(at_ns // SECOND_NS for at_ns in times_ns)
    native.gaps.count_seconds(array("q", times_ns), chunks)
    assert chunks == wanted


@pytest.mark.parametrize("gaps_ns", [[-1], [2**55], [0, 2**62]])
def test_what_is_no_gap_is_refused(gaps_ns: list[int]) -> None:
    with pytest.raises(ValueError, match="a gap is not negative"):
        native.gaps.count_gaps(array("q", gaps_ns), {})


@pytest.mark.parametrize("times", [array("i", [1, 2]), array("d", [1.0]), b"12345678", [1, 2]])
def test_what_is_no_array_of_nanoseconds_is_refused(times: object) -> None:
    with pytest.raises((TypeError, BufferError)):
        native.gaps.sort_gaps(times, 0)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        native.gaps.count_gaps(times, {})  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        native.gaps.count_seconds(times, {})  # type: ignore[arg-type]
