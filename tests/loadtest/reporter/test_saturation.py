"""What a stage showed: counters that reset, requests cut short, and what may violate."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fake_run import FakeRun, FakeStage, verdict_of

from loadtest.records import Sample
from loadtest.reporter.observation import Window
from loadtest.reporter.saturation import _preemptions, observe
from loadtest.scenario import Limits

STAGE = Window(index=0, label="", users=1, start_ns=10, settled_ns=12, end_ns=20)


def counter(at_ns: int, total: float) -> Sample:
    return Sample(at_ns=at_ns, source="engine", target="t", signals={"preemptions_total": total})


def test_preemptions_count_from_the_last_look_before_the_stage() -> None:
    assert _preemptions([counter(1, 0), counter(9, 3), counter(11, 5), counter(25, 90)], STAGE) == 2


def test_a_counter_that_was_reset_counts_from_zero() -> None:
    assert _preemptions([counter(9, 3), counter(11, 5), counter(13, 1), counter(15, 2)], STAGE) == 4


def test_a_stage_that_nobody_looked_at_has_an_unknown_number_of_preemptions() -> None:
    assert _preemptions([counter(9, 3)], STAGE) is None


@pytest.mark.parametrize(("looks", "queues"), [(25, False), (26, True)])
def test_a_queue_waits_in_more_than_half_of_the_looks(looks: int, queues: bool) -> None:
    run = FakeRun(stages=(FakeStage(users=20),))
    rows = run.rows()
    settled = [s for s in rows.samples if s.source == "engine" and s.at_ns > 10_000_000_000]
    late = {s.at_ns for s in settled[-looks:]}
    samples = tuple(
        replace(s, signals={**s.signals, "waiting": 12.0}) if s.source == "engine" and s.at_ns in late else s
        for s in rows.samples
    )
    (stage,) = observe(replace(rows, samples=samples), run.manifest, run.slots).stages
    assert len(settled) == 50
    assert stage.faults == (("a queue: 12 requests waiting in the median",) if queues else ())


def test_a_request_cut_short_counts_once_it_has_broken_a_limit() -> None:
    cut = FakeStage(users=10, e2e_s=5.0, failing="client_cancel", failing_share=0.5)
    (late,) = verdict_of(FakeRun(stages=(cut,), limits=Limits(ttft_s=2.0))).observation.stages
    (early,) = verdict_of(FakeRun(stages=(cut,), limits=Limits(ttft_s=9.0))).observation.stages
    assert late.cancelled == 0
    assert sum(late.violations) == early.cancelled > 0
    assert late.requests == early.requests + early.cancelled
    assert not any(early.violations)


@pytest.mark.parametrize(("percentile", "allowed"), [(90, 0.1), (95, 0.05), (99, 0.01), (99.9, 0.001)])
def test_what_may_violate_is_the_rest_of_the_percentile_exactly(percentile: float, allowed: float) -> None:
    assert Limits(percentile=percentile).violations_max_ratio == allowed


def test_only_stages_at_the_signed_number_or_above_prove_it() -> None:
    run = FakeRun(stages=(FakeStage(users=4), FakeStage(users=31)))
    verdict = verdict_of(run)
    assert verdict.n_safe == 24
    assert verdict.evidence.n == verdict.observation.stages[1].requests
