"""Looks are held small and as they were; of a run of days a few of each target, evenly."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.records import Sample
from loadtest.samples import HeldSamples

S = 10**9


def look(second: int, *, lag_s: float = 0.001, gc_s: float = 0.0, target: str = "w00") -> Sample:
    signals = {
        "client_loop_lag_max_s": lag_s,
        "client_gc_pause_max_s": gc_s,
        "client_users": float(second),
    }
    return Sample(at_ns=second * S, source="client", target=target, signals=signals)


def test_a_short_run_is_held_as_it_was() -> None:
    looks = [look(second, target=target) for second in range(50) for target in ("w00", "w01")]
    gap = Sample(at_ns=50 * S, source="engine", target="server", gap="timeout")
    device = Sample(
        at_ns=51 * S, source="gpu", target="0", labels={"b": "2", "a": "1"}, signals={"gpu_power_watts": 4.0}
    )
    held = HeldSamples()
    for sample in (*looks, gap, device):
        held.add(sample)
    assert held.in_order() == (*looks, gap, device)


@given(count=st.integers(0, 2_000), stall_at=st.integers(0, 2_000))
@settings(max_examples=60, deadline=None)
def test_however_long_a_run_no_target_has_more_looks_than_the_limit(count: int, stall_at: int) -> None:
    held = HeldSamples(looks_max=99)
    for second in range(count):
        stalled, collected = second == stall_at, second == stall_at + 1
        held.add(look(second, lag_s=5.0 if stalled else 0.001, gc_s=3.0 if collected else 0.0))
    kept = held.in_order()
    assert len(kept) <= 99
    gaps_ns = {later.at_ns - earlier.at_ns for earlier, later in pairwise(kept[:-1])}
    assert len(gaps_ns) <= 1, "not evenly"
    if stall_at < count - 30:
        assert max(sample.signals["client_loop_lag_max_s"] for sample in kept) == 5.0
        assert max(sample.signals["client_gc_pause_max_s"] for sample in kept) == 3.0


def test_two_servers_that_answer_in_turn_are_still_two() -> None:
    held = HeldSamples(looks_max=99)
    for second in range(5_000):
        signals = {"process_start_time_seconds": float(second % 2)}
        held.add(Sample(at_ns=second * S, source="engine", target="server", signals=signals))
    starts = [sample.signals["process_start_time_seconds"] for sample in held.in_order()]
    assert 90 > len(starts) > 30
    assert starts[:10] == [0.0, 1.0] * 5 or starts[:10] == [1.0, 0.0] * 5
