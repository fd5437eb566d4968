"""A level counts only while the load generator was innocent and its requests reached the engine."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fake_run import SETTLE_S, STAGE_S, FakeRun, FakeStage, verdict_of

from loadtest.reporter.client_checks import checks
from loadtest.reporter.verdict import Verdict

LATE_S = 0.2
BROKEN = FakeStage(users=61, running=40.6, waiting=20.4, kv_usage_ratio=0.99, preemptions=26, e2e_s=7.0)


def judged(*stages: FakeStage) -> Verdict:
    return verdict_of(FakeRun(stages=stages))


def test_a_client_that_is_late_voids_the_run_though_every_stage_holds() -> None:
    verdict = judged(FakeStage(users=24), FakeStage(users=31, lateness_s=LATE_S))
    assert (verdict.status, verdict.exit_code, verdict.n_max) == ("VOID", 5, 24)
    assert verdict.reason == (
        "the load generator at 31 users: requests were sent 200 ms late (p99); 24 users still count"
    )


def test_a_client_that_halted_says_which_level_still_counts() -> None:
    halted = FakeStage(users=31, failing="client_fd", failing_share=0.1)
    verdict = judged(FakeStage(users=24), halted)
    assert verdict.status == "VOID"
    assert verdict.reason.startswith("the load generator at 31 users: ")
    assert verdict.reason.endswith(" found no file descriptor or port on this machine; 24 users still count")
    assert judged(halted).reason.endswith("; no level counts")


def test_where_it_was_late_from_the_start_no_level_counts() -> None:
    verdict = judged(FakeStage(users=24, lateness_s=LATE_S), FakeStage(users=31, lateness_s=LATE_S))
    assert (verdict.status, verdict.n_max) == ("VOID", 0)
    assert verdict.reason.endswith("no level counts")


def test_a_void_level_below_one_that_counts_hides_nothing() -> None:
    verdict = judged(FakeStage(users=16, lateness_s=LATE_S), FakeStage(users=31), BROKEN)
    assert (verdict.status, verdict.n_max, verdict.observation.wall.name) == ("PASS", 31, "kv")


def test_a_void_level_is_neither_the_limit_nor_evidence() -> None:
    late = FakeStage(users=31, lateness_s=LATE_S, slow_share=0.5)
    verdict = judged(FakeStage(users=24), late, BROKEN)
    assert (verdict.n_max, verdict.n_safe, verdict.observation.wall.name) == (24, 19, "kv")
    first, *_ = verdict.observation.stages
    assert (verdict.evidence.n, verdict.evidence.k) == (first.requests, 0)


def test_a_void_level_with_none_that_held_below_hides_the_limit() -> None:
    verdict = judged(FakeStage(users=31, lateness_s=LATE_S), BROKEN)
    assert (verdict.status, verdict.n_max) == ("VOID", 0)


def test_what_the_server_showed_comes_second() -> None:
    wall = judged(FakeStage(users=24), FakeStage(users=61, lateness_s=LATE_S, preemptions=9)).observation.wall
    assert wall.name == "client"
    assert wall.runner_up is not None
    assert wall.runner_up.name == "kv"


def test_requests_parked_in_front_of_the_engine_break_a_level_whose_limits_hold() -> None:
    verdict = judged(FakeStage(users=24), FakeStage(users=31, running=24.0))
    assert (verdict.n_max, verdict.observation.wall.name) == (24, "network")
    (fault,) = verdict.observation.stages[1].faults
    assert fault == "23% of the requests in flight parked in front of the engine, 1.1 s each"


@pytest.mark.parametrize(
    "stage",
    [
        FakeStage(users=31, running=29.0),  # one in fifteen
        FakeStage(users=31, running=24.0, e2e_s=1.0),  # 0.2 s each: a long way, and short answers
    ],
)
def test_a_few_requests_or_a_long_way_are_not_parked(stage: FakeStage) -> None:
    assert judged(FakeStage(users=24), stage).n_max == 31


def test_an_idle_load_process_excuses_no_busy_one() -> None:
    run = FakeRun(stages=(FakeStage(users=24), FakeStage(users=31)), loop_lags_s=(0.001, 0.001, 0.4))
    assert verdict_of(run).status == "VOID"


def test_one_long_garbage_collection_voids_its_level_and_no_other() -> None:
    stages = (FakeStage(users=8), FakeStage(users=24), FakeStage(users=31, waiting=3.0))
    judged_from_s = STAGE_S + SETTLE_S
    spoiled = verdict_of(FakeRun(stages=stages, gc_pause_at_s=judged_from_s + 5))
    faults = [stage.client.faults for stage in spoiled.observation.stages]
    assert [len(found) for found in faults] == [0, 1, 0]
    assert faults[1][0].startswith("garbage collection stopped it for 80 ms at once: ")
    assert "--processes" in faults[1][0]
    settling = verdict_of(FakeRun(stages=stages, gc_pause_at_s=STAGE_S + 1))
    assert not any(stage.client.faults for stage in settling.observation.stages)


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        (
            {"steal_ratios": (0.12,)},
            "the hypervisor took 12% of its machine's processor time, in the worst second 12%",
        ),
        (
            {"steal_ratios": (0.3, *[0.0] * 29)},
            "the hypervisor took 1% of its machine's processor time, in the worst second 30%",
        ),
        (
            {"cpu_wait_ratios": (0.12,)},
            "it was ready and had no processor for 12% of the time, in the worst second 12%",
        ),
        (
            {"cpu_wait_ratios": (0.9, *[0.0] * 29)},
            "it was ready and had no processor for 2% of the time, in the worst second 90%",
        ),
        ({"steal_ratios": (0.01,), "cpu_wait_ratios": (0.04,)}, None),
        ({}, None),
    ],
)
def test_a_late_client_says_what_others_took(seen: dict[str, tuple[float, ...]], said: str | None) -> None:
    late = FakeStage(users=31, lateness_s=LATE_S)
    verdict = verdict_of(replace(FakeRun(stages=(FakeStage(users=24), late)), **seen))
    assert verdict.status == "VOID"
    assert (said or "; 24 users still count") in verdict.reason
    assert ("hypervisor" in verdict.reason) is ("hypervisor" in (said or ""))
    assert ("no processor" in verdict.reason) is ("no processor" in (said or ""))


def test_time_without_a_processor_voids_no_level_whose_load_was_on_time() -> None:
    run = FakeRun(stages=(FakeStage(users=24), FakeStage(users=31)), cpu_wait_ratios=(0.3,))
    health = verdict_of(run).observation.client
    assert (health.faults, health.cpu_wait_ratio, health.cpu_wait_max_ratio) == ((), pytest.approx(0.3), 0.3)
    (row,) = (r for r in checks(verdict_of(run).observation) if r["name"] == "time without a processor")
    assert (row["seen"], row["allowed"]) == ("30.0%", "not judged")
    assert row["meaning"].endswith("; 30% in the worst second")


def test_stolen_time_voids_no_level_whose_load_was_on_time() -> None:
    verdict = verdict_of(FakeRun(stages=(FakeStage(users=24), FakeStage(users=31)), steal_ratios=(0.3,)))
    health = verdict.observation.client
    assert (health.faults, health.steal_ratio, health.steal_max_ratio) == ((), pytest.approx(0.3), 0.3)
    (row,) = (row for row in checks(verdict.observation) if row["name"] == "time the hypervisor took")
    assert (row["seen"], row["allowed"]) == ("30.0%", "not judged")


def test_stolen_time_is_no_reason_for_what_is_not_late() -> None:
    halted = FakeStage(users=31, failing="client_fd", failing_share=0.1)
    run = FakeRun(stages=(FakeStage(users=24), halted), steal_ratios=(0.3,))
    assert "hypervisor" not in verdict_of(run).reason


def test_a_reason_that_two_faults_share_stands_once() -> None:
    run = FakeRun(stages=(FakeStage(users=31, lateness_s=LATE_S),), loop_lags_s=(0.4,), steal_ratios=(0.3,))
    sent_late, why, loop_late = verdict_of(run).observation.client.faults
    assert ("sent" in sent_late, "hypervisor" in why, "loop" in loop_late) == (True, True, True)


def test_a_client_that_stood_still_says_what_others_took() -> None:
    stages = (FakeStage(users=24), FakeStage(users=31))
    run = FakeRun(stages=stages, loop_lags_s=(2.5,), steal_ratios=(0.5,), cpu_wait_ratios=(0.7,))
    halts = verdict_of(run).observation.client.halts
    assert [halt.partition(" of ")[0] for halt in halts] == [
        "it stood still for 2.5 s",
        "the hypervisor took 50%",
        "it was ready and had no processor for 70%",
    ]
