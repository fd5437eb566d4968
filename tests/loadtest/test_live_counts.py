"""What is counted while the load runs: exact, whichever process counted it, and no failure is a latency."""

from __future__ import annotations

from dataclasses import replace

import msgpack
import pytest
from fake_run import FakeRun, FakeStage
from hypothesis import given
from hypothesis import strategies as st

from loadtest.live_counts import EDGES_S, LiveCounts, Spread, edges_s
from loadtest.records import RequestRecord
from loadtest.scenario import Limits

LIMITS = Limits(ttft_s=0.123, tpot_s=0.0177, e2e_s=4.9)


def records(slow_share: float = 0.0) -> list[RequestRecord]:
    stage = FakeStage(users=8, failing="http_5xx", failing_share=0.1, slow_share=slow_share)
    return list(FakeRun(stages=(stage,)).rows().requests)


def counted(rows: list[RequestRecord], limits: Limits = LIMITS) -> LiveCounts:
    counts = LiveCounts(limits)
    for row in rows:
        counts.add(row, [row.seq, row.seq + 20_000_000])
    return counts


@pytest.mark.parametrize(
    ("timing", "limit_s"), [("ttft", 0.123), ("tpot", 0.0177), ("itl", 0.0177), ("e2e", 4.9)]
)
def test_each_limit_is_an_edge_of_its_histogram(timing: str, limit_s: float) -> None:
    edges = edges_s(timing, LIMITS)  # type: ignore[arg-type]
    assert limit_s in edges
    assert list(edges) == sorted(set(edges))


def test_a_limit_that_is_an_edge_already_is_not_one_twice() -> None:
    assert edges_s("e2e", Limits(e2e_s=5.0)) == EDGES_S["e2e"]


def test_a_request_exactly_at_the_limit_is_within_it() -> None:
    spread = Spread(edges_s("ttft", LIMITS))
    spread.add(0.123)
    spread.add(0.123000001)
    assert (spread.at_most(0.123), spread.count) == (1, 2)


@given(gaps=st.lists(st.integers(min_value=0, max_value=20 * 10**9)))
def test_gaps_of_a_stream_are_counted_as_if_one_by_one(gaps: list[int]) -> None:
    together, one_by_one = Spread(EDGES_S["itl"]), Spread(EDGES_S["itl"])
    together.add_sorted_ns(sorted(gaps), sum(gaps))
    for gap in gaps:
        one_by_one.add(gap / 1e9)
    assert together.counts == one_by_one.counts
    assert together.sum_s == pytest.approx(one_by_one.sum_s)


def test_counts_of_two_processes_that_crossed_a_wire_add_up_to_those_of_one() -> None:
    rows = records(slow_share=0.2)
    total = LiveCounts(LIMITS)
    for part in (rows[::2], rows[1::2]):
        total.merge(msgpack.loads(msgpack.dumps(counted(part).message())))
    whole = counted(rows)
    assert (total.outcomes, total.good, total.output_tokens) == (
        whole.outcomes,
        whole.good,
        whole.output_tokens,
    )
    for timing, spread in whole.spreads.items():
        assert total.spreads[timing].counts == spread.counts
        assert total.spreads[timing].sum_s == pytest.approx(spread.sum_s)


def test_a_failure_is_counted_and_is_in_no_latency_though_its_sending_is_timed() -> None:
    rows = records()
    counts = counted(rows)
    assert 0 < counts.outcomes["http_5xx"] < len(rows)
    assert counts.spreads["ttft"].count == counts.succeeded == counts.outcomes["ok"]
    assert counts.spreads["lateness"].count == len(rows) == counts.judged


def test_good_is_what_succeeded_within_every_limit_and_what_we_cut_short_is_not_judged() -> None:
    (row, *_) = (row for row in records() if row.succeeded)
    slow = replace(row, first_token_ns=row.intended_ns + 200_000_000)
    cut = replace(row, outcome="client_cancel")
    counts = counted([row, slow, cut], Limits(ttft_s=0.15))
    assert (counts.good, counts.judged) == (1, 2)


def test_what_came_since_an_earlier_state_is_what_was_added() -> None:
    rows = records(slow_share=0.2)
    later = counted(rows).since(counted(rows[:40]))
    added = counted(rows[40:])
    assert later.outcomes == added.outcomes
    assert later.good == added.good
    assert later.spreads["e2e"].counts == added.spreads["e2e"].counts
