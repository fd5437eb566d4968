"""The fold over columns, part by part, equals the plain one over a list of records, to the last bit."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from fake_run import FakeRun, FakeStage
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_fold import PlainFold, breaks_a_limit, quantile

from loadtest.columns import Columns, Floats, columns_of
from loadtest.records import Outcome, RequestRecord, Sample
from loadtest.reporter import latency
from loadtest.reporter.observation import Window
from loadtest.reporter.question import Need, answer
from loadtest.reporter.saturation import observe
from loadtest.reporter.validity import counts_disagree, server_death
from loadtest.request_table import Part, RequestTable, part_of
from loadtest.results import RunRows
from loadtest.row_file import Damage
from loadtest.scenario import Limits

MS = 1_000_000
OUTCOMES: tuple[Outcome, ...] = (
    "ok",
    "short_eos",
    "client_cancel",
    "http_5xx",
    "connect_refused",
    "client_lost",
)
LIMITS = Limits(ttft_s=0.2, tpot_s=0.03, e2e_s=3.0, percentile=95)


def a_request(draw: random.Random, seq: int) -> RequestRecord:
    """A request of any shape that a row may have, between 0 and 70 s."""
    intended_ns = draw.randrange(0, 60_000 * MS, 250 * MS if draw.random() < 0.3 else 1)
    times = sorted(intended_ns + draw.randrange(4000 * MS) for _ in range(5))
    seen = [time if draw.random() < 0.8 else None for time in times[:4]]
    return RequestRecord(
        worker=draw.randrange(3),
        seq=seq,
        outcome=draw.choice(OUTCOMES) if draw.random() < 0.4 else "ok",
        endpoint="chat",
        planned_input_tokens=1,
        planned_output_tokens=2,
        intended_ns=intended_ns,
        connected_ns=seen[0],
        sent_ns=seen[1],
        first_token_ns=seen[2],
        last_token_ns=seen[3],
        done_ns=times[4],
        output_tokens=draw.choice([None, 0, 1, 2, 100]),
        first_chunk_tokens=draw.choice([1, 2]),
    )


def in_parts(requests: Sequence[RequestRecord], parts: int, draw: random.Random) -> RequestTable:
    """The same rows, thrown into so many parts."""
    heaps: list[list[RequestRecord]] = [[] for _ in range(parts)]
    for request in requests:
        draw.choice(heaps).append(request)
    return RequestTable(tuple(part for heap in heaps for part in part_of(columns_of(heap))))


def equal_to_plain(rows: RunRows, requests: Sequence[RequestRecord], limits: Limits) -> None:
    run = FakeRun(stages=(), limits=limits)
    observation = observe(rows, run.manifest, slots=None)
    plain = PlainFold(requests=requests, samples=rows.samples, limits=limits)
    for stage, window in zip(observation.stages, observation.windows, strict=True):
        for name, value in plain.stage(window).items():
            assert getattr(stage, name) == value, (stage.label, name)
        assert stage.client.send_lateness_p99_s == plain.send_lateness_p99_s([window])
        assert stage.client.parked_ratio == plain.parked_ratio([window])
    assert observation.client.send_lateness_p99_s == plain.send_lateness_p99_s(observation.windows)
    assert observation.client.parked_ratio == plain.parked_ratio(observation.windows)
    assert observation.requests == len(requests) == sum(observation.outcomes.values())


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize(
    "run",
    [
        FakeRun(
            stages=(FakeStage(users=24), FakeStage(users=31), FakeStage(users=61, preemptions=26, e2e_s=7.0))
        ),
        FakeRun(stages=(FakeStage(users=10, failing="http_5xx", failing_share=0.2, slow_share=0.1),)),
        FakeRun(
            stages=(FakeStage(users=10, failing="client_cancel", failing_share=0.3), FakeStage(users=20))
        ),
        FakeRun(stages=(FakeStage(users=5), FakeStage(users=9)), dies_at_s=70.0, thinking_s=0.4),
    ],
)
def test_a_run_of_stages_gives_the_figures_of_the_plain_fold(run: FakeRun, parts: int) -> None:
    rows = run.rows()
    requests = list(rows.requests)
    thrown = in_parts(requests, parts, random.Random(parts))
    equal_to_plain(replace(rows, requests=thrown), requests, run.limits)
    engine = [sample for sample in rows.samples if sample.source == "engine"]
    plain = PlainFold(requests=requests, samples=rows.samples, limits=run.limits)
    assert server_death(thrown, engine) == plain.server_death(engine)


@given(seed=st.integers(0, 2**32), count=st.integers(0, 60), parts=st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_requests_of_any_shape_give_the_figures_of_the_plain_fold(seed: int, count: int, parts: int) -> None:
    draw = random.Random(seed)
    requests = sorted(
        (a_request(draw, seq) for seq in range(count)), key=lambda r: (r.intended_ns, r.worker, r.seq)
    )
    fake = FakeRun(stages=(FakeStage(users=1), FakeStage(users=2))).rows()
    table = in_parts(requests, parts, draw)
    assert list(table) == requests
    rows = RunRows(requests=table, samples=fake.samples, events=fake.events, damage=Damage())
    equal_to_plain(rows, requests, LIMITS)
    plain = PlainFold(requests=requests, samples=fake.samples, limits=LIMITS)
    first, last = (
        Sample(at_ns=at_ns, source="engine", target="t", signals={"requests_finished_total": total})
        for at_ns, total in ((0, 0.0), (40_000 * MS, draw.randrange(60)))
    )
    assert (counts_disagree(table, [first, last]) is not None) == plain.counts_disagree(first, last)
    columns = columns_of(requests)
    assert latency.breaks_a_limit(columns, LIMITS).tolist() == [breaks_a_limit(r, LIMITS) for r in requests]


def watched(part: Part, reads: Counter[Part]) -> Part:
    """The same part, which counts how often it is read."""

    def read(names: Iterable[str]) -> Columns:
        reads[part] += 1
        return part.read(names)

    return replace(part, read=read)


def test_a_report_unpacks_a_segment_as_often_however_many_levels_a_run_has() -> None:
    """As often as its own level, one whose requests end in it, and the run as a whole look."""

    def most_reads(levels: int) -> int:
        rows = FakeRun(stages=tuple(FakeStage(users=users) for users in range(5, 5 + levels))).rows()
        in_order = list(rows.requests)
        heaps = [in_order[at : at + 20] for at in range(0, len(in_order), 20)]
        reads: Counter[Part] = Counter()
        parts = tuple(watched(part, reads) for heap in heaps for part in part_of(columns_of(heap)))
        observe(replace(rows, requests=RequestTable(parts)), FakeRun(stages=()).manifest, slots=None)
        assert len(reads) == len(parts) > levels
        return max(reads.values())

    assert most_reads(2) == most_reads(8) <= 7


ALL = Need(names=frozenset({"gap_p50_s"}), start_ns=0, end_ns=0)


def gaps_part(gaps_s: Floats) -> Part:
    columns = Columns(len(gaps_s), {"gap_p50_s": gaps_s}, {})
    return Part(
        rows=len(gaps_s), intended_first_ns=0, intended_last_ns=0, done_last_ns=0, read=lambda _: columns
    )


FLOATS = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, -0.0, 1.5, 1.5, 2.0])


@given(parts=st.lists(st.lists(FLOATS, max_size=40), min_size=1, max_size=4))
@settings(max_examples=100, deadline=None)
def test_a_quantile_is_exact_however_few_values_are_kept(parts: list[list[float]]) -> None:
    """Each value a thousand times over makes the search count by bits before it keeps any."""
    values = sorted(value for part in parts for value in part)
    table = RequestTable(tuple(gaps_part(np.repeat(np.array([*part, math.nan]), 1000)) for part in parts))
    shares = (0.0, 0.5, 0.95, 0.99, 1.0)
    question = latency.exact_quantiles(ALL, lambda rows: [{"x": rows["gap_p50_s"]}], shares, kept_values=700)
    found = answer(table, question)
    assert found.get("x") == (tuple(quantile(values, share) for share in shares) if values else None)


def test_a_window_nobody_started_in_has_no_latency() -> None:
    window = Window(index=0, label="", users=1, start_ns=0, settled_ns=0, end_ns=1)
    plain = PlainFold(requests=[], samples=[], limits=LIMITS)
    assert plain.stage(window)["ttft"] is None
    assert answer(RequestTable(()), latency.exact_quantiles(ALL, lambda _: [], (0.5,))) == {}
