"""Figures no metrics page should hold, and a limit that is none: not seen, never taken for a number."""

from __future__ import annotations

import pytest
from fake_run import FakeRun, FakeStage, verdict_of

from loadtest.collector.engine_metrics import read_engine_page

GOOD = 'vllm:num_requests_running{engine="0"} 3.0\nvllm:num_preemptions_total{engine="0"} 7.0\n'


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-Inf", "-1", "1e400", "0x10", "1_000", "three", ""])
def test_f42_a_figure_that_cannot_be_one_is_absent_and_spoils_no_other(value: str) -> None:
    reading = read_engine_page(f'{GOOD}vllm:num_requests_waiting{{engine="0"}} {value}\n')
    assert "waiting" not in reading.signals
    assert (reading.signals["running"], reading.signals["preemptions_total"]) == (3, 7)


def test_f42_a_series_that_is_shown_twice_counts_once() -> None:
    assert read_engine_page(GOOD + GOOD).signals["running"] == 3


def test_f42_the_moment_a_counter_was_created_is_no_part_of_its_sum() -> None:
    created = 'vllm:num_preemptions_created{engine="0"} 1.763e+09\n'
    assert read_engine_page(GOOD + created).signals["preemptions_total"] == 7


def test_f32_prompts_that_were_to_be_unique_and_lay_in_the_prefix_cache_are_not_signed() -> None:
    stages = (FakeStage(users=36, cache_hit_ratio=0.0),)
    assert verdict_of(FakeRun(stages=stages)).status == "PASS"
    verdict = verdict_of(FakeRun(stages=(FakeStage(users=36, cache_hit_ratio=0.02),)))
    assert (verdict.status, verdict.exit_code) == ("INCONCLUSIVE", 4)
    assert "the run is inflated (2% of the prompt tokens at 36 users" in verdict.reason


def test_f63_more_requests_running_than_max_num_seqs_leaves_it_unknown() -> None:
    stages = (FakeStage(users=36, running=36.0),)
    assert verdict_of(FakeRun(stages=stages, slots=128)).status == "PASS"
    verdict = verdict_of(FakeRun(stages=stages, slots=2))
    assert (verdict.status, verdict.exit_code) == ("INCONCLUSIVE", 4)
    assert "what max_num_seqs is (2 was given, and 36 requests ran at once)" in verdict.reason
