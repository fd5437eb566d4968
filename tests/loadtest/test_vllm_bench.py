"""The export in vllm bench's words, beside what its own arithmetic makes of every single token time."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from fake_run import FakeRun, FakeStage

from loadtest.records import RequestRecord, StreamCounts
from loadtest.request_table import RequestTable
from loadtest.stream_counts import GAP_ERROR_MAX, Tally
from loadtest.vllm_bench import WIDTH, Scope, bench_block, bench_result

MANIFEST = FakeRun(stages=(FakeStage(users=1),)).manifest
SECOND_NS = 10**9
ALL_LINES = """
============ Serving Benchmark Result ============
Successful requests:
Failed requests:
Maximum request concurrency:
Benchmark duration (s):
Total input tokens:
Total generated tokens:
Request throughput (req/s):
Output token throughput (tok/s):
Peak output token throughput (tok/s):
Peak concurrent requests:
Total token throughput (tok/s):
---------------Time to First Token----------------
Mean TTFT (ms):
Median TTFT (ms):
P99 TTFT (ms):
-----Time per Output Token (excl. 1st token)------
Mean TPOT (ms):
Median TPOT (ms):
P99 TPOT (ms):
---------------Inter-token Latency----------------
Mean ITL (ms):
Median ITL (ms):
P99 ITL (ms):
----------------End-to-end Latency----------------
Mean E2EL (ms):
Median E2EL (ms):
P99 E2EL (ms):
==================================================
""".strip().splitlines()


@dataclass(frozen=True, slots=True)
class Streamed:
    """A request and when each of its tokens came."""

    record: RequestRecord
    token_ns: Sequence[int]


def streamed(count: int) -> list[Streamed]:
    """`count` requests over some 20 s, one in ten failed, with gaps as a busy server makes them."""
    draw = np.random.default_rng(7)
    made = []
    for seq in range(count):
        intended_ns = int(draw.integers(5 * SECOND_NS, 25 * SECOND_NS))
        gaps_ns = draw.lognormal(math.log(20e6), 0.8, draw.integers(0, 60)).astype(np.int64)
        token_ns = (intended_ns + 100_000_000 + np.cumsum([0, *gaps_ns])).tolist()
        record = RequestRecord(
            worker=0,
            seq=seq,
            outcome="stream_error" if seq % 10 == 9 else "ok",
            endpoint="chat",
            planned_input_tokens=10,
            planned_output_tokens=len(token_ns),
            intended_ns=intended_ns,
            first_token_ns=token_ns[0],
            last_token_ns=token_ns[-1],
            done_ns=token_ns[-1] + 1_000_000,
            input_tokens=10,
            output_tokens=len(token_ns),
            chunks=len(token_ns),
        )
        made.append(Streamed(record, token_ns))
    return made


def counted(requests: Sequence[Streamed]) -> list[StreamCounts]:
    tally = Tally(0)
    for one in requests:
        if one.record.succeeded:
            gaps_ns = array("q", sorted(np.diff(one.token_ns).tolist()))
            tally.add(one.record.intended_ns, gaps_ns, array("q", one.token_ns))
    return list(tally.taken())


@pytest.mark.parametrize(
    "scope", [None, Scope(start_ns=8 * SECOND_NS + 1, end_ns=20 * SECOND_NS - 1, users=12)]
)
def test_itl_is_that_of_every_single_gap(scope: Scope | None) -> None:
    requests = streamed(400)
    result = bench_result(
        RequestTable.of([one.record for one in requests]), counted(requests), MANIFEST, scope
    )
    # of a stage: its whole seconds
    seconds = range(100) if scope is None else range(9, 19)
    inside = [
        one for one in requests if one.record.succeeded and one.record.intended_ns // SECOND_NS in seconds
    ]
    gaps_ms = np.concatenate([np.diff(one.token_ns) for one in inside]) / 1e6
    assert result["std_itl_ms"] == pytest.approx(np.std(gaps_ms), rel=1e-9)
    assert result["median_itl_ms"] == pytest.approx(np.median(gaps_ms), rel=GAP_ERROR_MAX)
    assert result["p99_itl_ms"] == pytest.approx(np.percentile(gaps_ms, 99), rel=GAP_ERROR_MAX)
    assert result["mean_itl_ms"] == pytest.approx(np.mean(gaps_ms), rel=1e-9 if scope is None else 0.1)
    busiest = Counter(at_ns // SECOND_NS for one in inside for at_ns in one.token_ns)
    assert result["max_output_tokens_per_s"] == max(busiest.values())


def test_the_block_has_every_line_of_vllms_own_and_its_width() -> None:
    requests = streamed(50)
    scope = Scope(start_ns=0, end_ns=100 * SECOND_NS, users=12)
    table = RequestTable.of([one.record for one in requests])
    lines = bench_block(bench_result(table, counted(requests), MANIFEST, scope)).splitlines()
    labels = [line if line[0] in "=-" else line[:40].rstrip() for line in lines]
    assert labels == ALL_LINES
    assert all(len(line) >= WIDTH for line in lines)


def test_counts_that_a_killed_worker_took_with_it_leave_null_not_a_wrong_figure() -> None:
    requests = streamed(400)
    rows = counted(requests)
    table = RequestTable.of([one.record for one in requests])
    result = bench_result(table, rows[: len(rows) // 2], MANIFEST, None)
    assert result["p99_itl_ms"] is result["std_itl_ms"] is result["max_output_tokens_per_s"] is None
    assert result["mean_itl_ms"] > 0
    assert not [line for line in bench_block(result).splitlines() if "P99 ITL" in line]


def test_a_run_without_a_success_has_zeros_as_vllm_prints_them() -> None:
    failed = [one for one in streamed(40) if not one.record.succeeded]
    result = bench_result(RequestTable.of([one.record for one in failed]), [], MANIFEST, None)
    assert (result["completed"], result["failed"]) == (0, 4)
    assert (result["mean_itl_ms"], result["p99_itl_ms"], result["max_output_tokens_per_s"]) == (0, 0, 0)
