"""A load process sees what its garbage collector takes, only while it looks, and what the hypervisor took."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from loadtest.conductor.pulse import Collections, Pulse

MS = 1_000_000


@contextmanager
def collections(*clock_ms: int) -> Iterator[Collections]:
    """Timed by a clock that shows these milliseconds; none but the ones we ask for happen meanwhile."""
    gc.disable()
    times = iter(clock_ms)
    watch = Collections(lambda: next(times) * MS)
    try:
        yield watch
    finally:
        watch.close()
        gc.enable()


def test_the_longest_collection_and_their_sum_are_known() -> None:
    with collections(10, 13, 50, 58, 90, 91) as watch:
        for _ in range(3):
            gc.collect()
        assert (watch.longest_ns, watch.total_ns) == (8 * MS, 12 * MS)


def test_a_closed_watch_is_told_nothing_more() -> None:
    before = list(gc.callbacks)
    with collections(0, 1) as watch:
        gc.collect()
    assert gc.callbacks == before
    gc.collect()
    assert watch.total_ns == 1 * MS


def test_each_sample_tells_the_longest_since_the_last_one_and_the_sum_of_all() -> None:
    pulse = Pulse(0)
    try:
        gc.collect()
        first = pulse.sample(users=1, in_flight=1).signals
        assert 0 < first["client_gc_pause_max_s"] <= first["client_gc_total_s"]
        gc.disable()
        pulse.sample(users=1, in_flight=1)
        quiet = pulse.sample(users=1, in_flight=1).signals
        assert quiet["client_gc_pause_max_s"] == 0.0
        assert quiet["client_gc_total_s"] >= first["client_gc_total_s"]
    finally:
        gc.enable()
        pulse.close()


@pytest.mark.parametrize(
    ("passed_s", "ratio", "shown"), [(1.0, 0.25, 0.25), (1.0, 0.0, 0.0), (1.0, None, None), (0.1, 0.25, None)]
)
def test_a_sample_tells_what_the_hypervisor_took_where_that_can_be_known(
    passed_s: float, ratio: float | None, shown: float | None
) -> None:
    times_ns = iter((0, int(passed_s * 1e9)))
    pulse = Pulse(0, lambda: next(times_ns), lambda: ratio)
    try:
        assert pulse.sample(users=1, in_flight=1).signals.get("client_steal_ratio") == shown
    finally:
        pulse.close()


@pytest.mark.parametrize(("waited_s", "shown"), [(0.5, 0.25), (0.0, 0.0), (2.1, 1.0), (None, None)])
def test_a_sample_tells_how_long_a_thread_had_no_processor(
    waited_s: float | None, shown: float | None
) -> None:
    """A wait counts when it is over: it may be longer than the time since the last sample."""
    times_ns = iter((0, 2_000_000_000))
    pulse = Pulse(0, lambda: next(times_ns), waited_s=lambda: waited_s)
    try:
        assert pulse.sample(users=1, in_flight=1).signals.get("client_cpu_wait_ratio") == shown
    finally:
        pulse.close()
