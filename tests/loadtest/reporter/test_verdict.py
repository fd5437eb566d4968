"""From rows to a signed number: which wall, which number, and when no number may be given."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fake_run import FakeRun, FakeStage, verdict_of
from hypothesis import given
from hypothesis import strategies as st

from loadtest.reporter.buffer import BUFFER_RATIO, safe_limit
from loadtest.scenario import Limits

HELD = (FakeStage(users=24), FakeStage(users=31))
KV_WALL = FakeStage(users=61, running=40.6, waiting=20.4, kv_usage_ratio=0.99, preemptions=26, e2e_s=7.0)


def test_a_full_cache_above_the_guarantee_signs_80_percent_of_it() -> None:
    verdict = verdict_of(FakeRun(stages=(*HELD, KV_WALL)))
    assert (verdict.n_kv, verdict.n_slots, verdict.n_slo, verdict.n_max) == (31, 128, 61, 31)
    assert (verdict.n_safe, verdict.status, verdict.exit_code) == (24, "PASS", 0)
    assert verdict.observation.wall.name == "kv"
    assert "26 preemptions at 61 users" in verdict.observation.wall.evidence
    assert verdict.gap_ratio == 0


def test_slots_that_run_out_first_are_the_wall_and_the_limit() -> None:
    full = FakeStage(users=40, running=20.0, waiting=20.0)
    verdict = verdict_of(FakeRun(stages=(FakeStage(users=16), full), slots=20))
    assert verdict.observation.wall.name == "slots"
    assert "20 of 20 slots" in verdict.observation.wall.evidence
    assert verdict.n_safe == 12  # floor(0.8 x min(31, 20, 16))


def test_a_latency_limit_that_breaks_without_a_queue_is_the_slo_wall() -> None:
    slow = FakeStage(users=31, ttft_s=3.0)
    verdict = verdict_of(FakeRun(stages=(FakeStage(users=24), slow)))
    assert verdict.observation.wall.name == "slo"
    assert (verdict.n_slo, verdict.n_max, verdict.n_safe) == (24, 24, 19)


def test_waiting_with_cache_and_slots_free_is_the_prefill_wall() -> None:
    verdict = verdict_of(FakeRun(stages=(FakeStage(users=16), FakeStage(users=31, waiting=8.0))))
    assert verdict.observation.wall.name == "prefill"


def test_a_preemption_proves_a_full_cache_though_no_look_saw_it_full() -> None:
    brief = FakeStage(users=33, kv_usage_ratio=0.91, preemptions=2)
    assert verdict_of(FakeRun(stages=(*HELD, brief))).observation.wall.name == "kv"


def test_slots_that_nobody_named_are_recognised_by_a_batch_that_stands_still() -> None:
    full = FakeStage(users=40, running=20.0, waiting=20.0)
    verdict = verdict_of(FakeRun(stages=(FakeStage(users=16), full), slots=None))
    assert verdict.observation.wall.name == "slots"
    assert "probably" in verdict.observation.wall.evidence


def test_slow_and_failed_requests_share_one_allowance() -> None:
    """4% fail and may, 3% are slow and may: together they break a p95."""
    limits = Limits(ttft_s=2.0, failures_max_ratio=0.05)
    failing = FakeStage(users=31, failing="http_5xx", failing_share=0.04)
    assert verdict_of(FakeRun(stages=(failing,), limits=limits)).n_max == 31
    both = FakeStage(users=31, failing="http_5xx", failing_share=0.04, slow_share=0.03)
    assert verdict_of(FakeRun(stages=(both,), limits=limits)).n_max == 0


def test_requests_the_engine_does_not_count_are_in_front_of_it() -> None:
    parked = FakeStage(users=31, running=20.0, waiting=1.0)
    verdict = verdict_of(FakeRun(stages=(FakeStage(users=16), parked)))
    assert verdict.observation.wall.name == "network"


def test_refused_requests_are_the_admission_wall() -> None:
    refused = FakeStage(users=40, failing="http_503_admission", failing_share=0.3)
    verdict = verdict_of(FakeRun(stages=(FakeStage(users=24), refused)))
    assert verdict.observation.wall.name == "admission"
    assert verdict.n_max == 24


def test_failures_above_one_percent_break_a_stage_and_below_do_not() -> None:
    some = FakeStage(users=31, failing="http_5xx", failing_share=0.02)
    few = FakeStage(users=31, failing="http_5xx", failing_share=0.0)
    assert verdict_of(FakeRun(stages=(FakeStage(users=24), some))).n_max == 24
    assert verdict_of(FakeRun(stages=(FakeStage(users=24), few))).n_max == 31


def test_a_failed_request_counts_against_the_limits_and_enters_no_latency() -> None:
    failing = FakeStage(users=31, failing="stall_ttft", failing_share=0.5)
    (stage,) = verdict_of(FakeRun(stages=(failing,))).observation.stages
    assert 0.4 < sum(stage.violations) / stage.requests < 0.6
    assert stage.ttft is not None
    assert stage.ttft.p99_s == pytest.approx(0.1)


def test_a_client_that_sends_late_voids_the_run() -> None:
    late = FakeStage(users=31, waiting=3.0, lateness_s=0.2)
    verdict = verdict_of(FakeRun(stages=(FakeStage(users=24), late)))
    assert (verdict.status, verdict.exit_code, verdict.observation.wall.name) == ("VOID", 5, "client")
    assert "200 ms late" in verdict.reason


def test_a_client_whose_loop_lags_voids_the_run() -> None:
    verdict = verdict_of(FakeRun(stages=(*HELD, KV_WALL), loop_lag_s=0.4))
    assert (verdict.status, verdict.exit_code) == ("VOID", 5)


def test_a_server_that_restarts_voids_the_run_with_exit_3() -> None:
    verdict = verdict_of(FakeRun(stages=(*HELD, KV_WALL), restart_at_s=90.0))
    assert (verdict.status, verdict.exit_code) == ("VOID", 3)
    assert "restarted" in verdict.reason


def test_a_server_that_stops_answering_voids_the_run_with_exit_3() -> None:
    verdict = verdict_of(FakeRun(stages=(*HELD, KV_WALL), dies_at_s=150.0))
    assert (verdict.status, verdict.exit_code) == ("VOID", 3)
    assert "stopped answering" in verdict.reason


def test_a_server_that_dies_is_noticed_without_metrics_too() -> None:
    run = FakeRun(stages=HELD, with_metrics=False, dies_at_s=90.0)
    assert verdict_of(run).exit_code == 3


def test_metrics_that_fall_silent_while_requests_are_answered_are_no_death() -> None:
    verdict = verdict_of(FakeRun(stages=HELD, silent_from_s=100.0))
    assert (verdict.status, verdict.exit_code) == ("INCONCLUSIVE", 4)
    assert "whether requests waited at 31 users" in verdict.reason


def test_silence_above_the_highest_stage_that_held_costs_nothing() -> None:
    verdict = verdict_of(FakeRun(stages=(*HELD, KV_WALL), silent_from_s=150.0))
    assert (verdict.status, verdict.n_safe) == ("PASS", 24)


def test_users_that_pause_do_not_load_the_server_they_are_counted_for() -> None:
    verdict = verdict_of(FakeRun(stages=HELD, thinking_s=1.0))
    assert (verdict.status, verdict.exit_code, verdict.observation.wall.name) == ("VOID", 5, "client")
    assert "in flight at 24 users" in verdict.reason


def test_too_few_requests_are_inconclusive_and_say_how_many_more() -> None:
    few = FakeRun(stages=(FakeStage(users=2, e2e_s=20.0), FakeStage(users=3, waiting=2.0)))
    verdict = verdict_of(few)
    assert (verdict.status, verdict.exit_code) == ("INCONCLUSIVE", 4)
    assert f"{276 - verdict.evidence.n} more clean requests" in verdict.reason  # 69 x the design effect 4


def test_without_metrics_nothing_is_claimed_about_preemption() -> None:
    verdict = verdict_of(FakeRun(stages=HELD, with_metrics=False))
    assert (verdict.status, verdict.exit_code) == ("INCONCLUSIVE", 4)
    assert "whether requests were preempted" in verdict.reason
    assert verdict.observation.stages[0].preemptions is None


def test_not_even_the_lowest_stage_held_is_a_fail() -> None:
    verdict = verdict_of(FakeRun(stages=(KV_WALL,)))
    assert (verdict.status, verdict.exit_code, verdict.n_safe) == ("FAIL", 1, 0)


def test_a_run_whose_highest_stage_held_is_a_lower_bound() -> None:
    verdict = verdict_of(FakeRun(stages=HELD))
    assert verdict.is_lower_bound
    assert verdict.observation.wall.name == "none"
    assert verdict.n_safe == 24


def test_a_higher_stage_that_holds_again_does_not_raise_the_number() -> None:
    verdict = verdict_of(FakeRun(stages=(FakeStage(users=16), FakeStage(users=20, waiting=4.0), *HELD)))
    assert not verdict.observation.is_monotone
    assert verdict.n_max == 16


def test_a_run_without_stages_is_inconclusive() -> None:
    verdict = verdict_of(FakeRun(stages=()))
    assert (verdict.status, verdict.exit_code) == ("INCONCLUSIVE", 4)


def test_without_limits_no_slo_figure_is_invented() -> None:
    assert verdict_of(FakeRun(stages=(*HELD, KV_WALL), limits=Limits())).n_slo is None


def test_the_figures_of_a_stage_are_those_of_its_requests() -> None:
    (stage,) = verdict_of(FakeRun(stages=(FakeStage(users=30, e2e_s=5.0),))).observation.stages
    assert stage.in_flight_mean == pytest.approx(30, rel=0.02)
    assert stage.requests_per_s == pytest.approx(6, rel=0.02)
    assert stage.output_tokens_per_s == pytest.approx(6 * 256, rel=0.02)
    assert stage.little_ratio == pytest.approx(1, rel=0.02)
    assert stage.tpot is not None
    assert stage.tpot.p50_s == pytest.approx(4.9 / 255)
    assert stage.kv_usage_mean_ratio == pytest.approx(30 * 12.5 / 511)


@pytest.mark.parametrize(
    ("limit", "safe"), [(256, 204), (31, 24), (35, 28), (5, 4), (1, 0), (40.9, 32), (0, 0)]
)
def test_the_buffer_is_exact_where_floats_are_not(limit: float, safe: int) -> None:
    assert safe_limit(limit) == safe


def test_any_buffer_is_exact() -> None:
    assert safe_limit(10, buffer_ratio=0.9) == 1  # 10 x (1 - 0.9) is 0.99... in floats


def test_the_buffer_is_what_the_scenario_asks_for() -> None:
    calm = FakeRun(stages=(*HELD, KV_WALL))
    ours = verdict_of(calm)
    wide = verdict_of(replace(calm, limits=replace(calm.limits, buffer_ratio=0.5)))
    smallest = min(limit for limit in (ours.n_kv, ours.n_slots, ours.n_slo, ours.n_max) if limit is not None)
    assert (ours.n_safe, ours.buffer_ratio) == (safe_limit(smallest), BUFFER_RATIO)
    assert (wide.n_safe, wide.buffer_ratio) == (smallest // 2, 0.5)


def test_limits_that_are_not_known_do_not_count() -> None:
    assert safe_limit(None, 50, None, 40.0) == 32
    assert safe_limit(None, None) == 0


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=5))
def test_the_signed_number_is_below_every_limit_by_the_buffer(limits: list[int]) -> None:
    signed = safe_limit(*limits)
    assert all(signed <= limit * (1 - BUFFER_RATIO) + 1e-6 for limit in limits)
    assert signed + 1 > min(limits) * (1 - BUFFER_RATIO) - 1e-6
