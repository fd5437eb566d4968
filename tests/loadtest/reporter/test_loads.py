"""Loads whose concurrency nobody sets: users who think, and requests that come at a rate."""

from __future__ import annotations

import pytest
from fake_run import FakeRun, FakeStage, verdict_of

from loadtest.reporter.verdict import Verdict


def open_loop(**stage: float) -> Verdict:
    """60 users of whom each request needs 5 s: 12 a second keep them all busy."""
    one = FakeStage(users=60, rate_per_s=12.0, **stage)  # type: ignore[arg-type]
    return verdict_of(FakeRun(stages=(one,)))


def test_users_who_think_half_of_the_time_are_half_as_many_parallel_requests() -> None:
    verdict = verdict_of(
        FakeRun(stages=(FakeStage(users=30, running=15.0),), thinking_s=5.0, has_pauses=True)
    )
    (stage,) = verdict.observation.stages
    assert (stage.users, stage.name, stage.held) == (15, "15 users", True)
    assert (verdict.n_max, verdict.n_safe) == (15, 12)


def test_a_level_that_every_request_outlasts_is_neither_held_nor_broken() -> None:
    slow, quick = FakeStage(users=15, e2e_s=60.0, begin_within_s=1.0), FakeStage(users=31)
    verdict = verdict_of(FakeRun(stages=(slow, quick)))
    assert [stage.users for stage in verdict.observation.stages] == [31]
    assert (verdict.n_max, verdict.n_safe) == (31, 24)
    (note,) = (note for note in verdict.observation.notes if "15 users" in note)
    assert "no request began in the 50 s that are judged" in note


def test_a_run_of_such_levels_alone_proves_nothing() -> None:
    verdict = verdict_of(FakeRun(stages=(FakeStage(users=15, e2e_s=60.0, begin_within_s=1.0),)))
    assert (verdict.status, verdict.n_max) == ("INCONCLUSIVE", 0)
    assert verdict.reason == "no stage lasted long enough to be judged"


def test_such_a_level_with_a_queue_is_broken() -> None:
    queue = FakeStage(users=60, e2e_s=60.0, begin_within_s=1.0, waiting=20.0)
    verdict = verdict_of(FakeRun(stages=(FakeStage(users=31), queue)))
    assert verdict.observation.first_broken is not None
    assert (verdict.observation.first_broken.users, verdict.n_max) == (60, 31)


def test_users_who_pause_though_nobody_told_them_to_are_a_load_that_was_not_held() -> None:
    verdict = verdict_of(FakeRun(stages=(FakeStage(users=30, running=15.0),), thinking_s=5.0))
    assert verdict.observation.stages[0].shortfall == "only 15.0 requests in flight"
    assert verdict.observation.wall.name == "client"


def test_users_who_are_not_there_are_missed_even_where_users_pause() -> None:
    stage = FakeStage(users=30, running=15.0, users_at_work=20)
    verdict = verdict_of(FakeRun(stages=(stage,), thinking_s=5.0, has_pauses=True))
    assert verdict.observation.stages[0].faults == ("only 20 of 30 users were at work",)
    assert verdict.status == "VOID"


def test_a_rate_is_named_by_itself_and_counts_as_what_it_keeps_in_flight() -> None:
    verdict = open_loop()
    (stage,) = verdict.observation.stages
    assert (stage.name, stage.users, stage.held) == ("12 requests/s", 60, True)
    assert verdict.n_max == 60


@pytest.mark.parametrize(("share", "held"), [(0.02, True), (0.2, False)])
def test_requests_that_nobody_was_free_for_break_the_stage(share: float, held: bool) -> None:
    (stage,) = open_loop(unsent_share=share).observation.stages
    assert stage.held is held


def test_a_pool_that_was_too_small_for_a_quiet_server_is_the_loads_own_fault() -> None:
    verdict = open_loop(unsent_share=0.2)
    assert verdict.status == "VOID"
    assert "none of 60 users free: give the stage more `users`" in verdict.observation.wall.evidence


def test_a_pool_that_a_full_server_used_up_found_the_servers_wall() -> None:
    verdict = open_loop(unsent_share=0.2, waiting=20.0, kv_usage_ratio=0.99)
    assert verdict.observation.wall.name == "kv"
    assert "at 12 requests/s" in verdict.observation.wall.evidence
