"""Every check of the machine has a case that passes and one that does not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from loadtest.audit import Level
from loadtest.conductor.audit.host_audit import CHECKS, Echo, LoadPlan, echo_check, host_checks
from loadtest.conductor.audit.host_facts import HostFacts, TimerLook

STILL = TimerLook(lag_median_s=0.0001, lag_max_s=0.002, wall_step_s=0.0, went_back=False)
FIT = HostFacts(
    fd_soft=4096,
    fd_hard=4096,
    ports=(32768, 60999),
    time_wait=5,
    tick_s=1e-9,
    clocksource="tsc",
    timer=STILL,
    cpus=8,
    cpu_quota=None,
    load_1m=0.3,
    steal_ratio=0.0,
    memory_free_bytes=2**33,
)
PLAN = LoadPlan(users=1000)
ECHO = Echo(chunks_per_cpu_s=100_000, chunks_per_s=80_000, streams=200, echo_s=2.0)


def levels(facts: HostFacts, plan: LoadPlan = PLAN) -> dict[str, Level]:
    return {check.name: check.level for check in host_checks(facts, plan)}


def test_a_fit_machine_is_green_in_everything() -> None:
    assert set(levels(FIT).values()) == {"ok"}
    assert len(levels(FIT)) == len(CHECKS)


@pytest.mark.parametrize(
    ("name", "facts", "level", "said"),
    [
        ("file descriptors", {"fd_soft": 256, "fd_hard": 1099}, "red", "need 1,100 file descriptors"),
        ("ports", {"ports": (60000, 60999), "time_wait": 0}, "red", "100% of 1,000 ports"),
        ("ports", {"time_wait": 14_000}, "amber", "14,000 in TIME_WAIT"),
        ("ports", {"ports": None}, "skipped", "not shown"),
        ("clock", {"timer": replace(STILL, went_back=True)}, "red", "backwards"),
        ("clock", {"timer": replace(STILL, wall_step_s=-0.8)}, "amber", "-800 ms"),
        ("clock", {"clocksource": "hpet"}, "amber", "hpet"),
        ("clock", {"tick_s": 0.004}, "amber", "4000 us"),
        ("processors", {"cpus": 1}, "amber", "1 processors"),
        ("processors", {"cpu_quota": 0.5}, "red", "0.5 by cgroup quota"),
        ("load", {"load_1m": 8.1}, "amber", "8.1 runnable"),
        ("load", {"load_1m": None}, "skipped", "not shown"),
        ("steal", {"steal_ratio": 0.05}, "amber", "5%"),
        ("steal", {"steal_ratio": 0.3}, "amber", "30%"),
        ("steal", {"steal_ratio": None}, "skipped", "no stolen time"),
        ("timers", {"timer": replace(STILL, lag_median_s=0.02)}, "amber", "20.00 ms late"),
        ("timers", {"timer": replace(STILL, lag_median_s=0.2)}, "red", "200.00 ms late"),
        ("memory", {"memory_free_bytes": 150 * 2**20}, "amber", "104 MiB needed, 150 MiB free"),
        ("memory", {"memory_free_bytes": 50 * 2**20}, "red", "50 MiB free"),
        ("memory", {"memory_free_bytes": None}, "skipped", "not shown"),
    ],
)
def test_a_machine_that_is_not_fit_says_where(
    name: str, facts: dict[str, Any], level: Level, said: str
) -> None:
    found = {check.name: check for check in host_checks(replace(FIT, **facts), PLAN)}
    assert found[name].level == level
    assert said in found[name].said
    assert (found[name].fix != "") == (level in ("amber", "red"))
    assert {check.level for check in found.values() if check.name != name} == {"ok"}


def test_a_soft_limit_that_can_be_raised_is_no_fault() -> None:
    (check,) = [c for c in host_checks(replace(FIT, fd_soft=256), PLAN) if c.name == "file descriptors"]
    assert (check.level, check.said) == ("ok", "1,100 needed, 4,096 allowed, raised from 256")


@pytest.mark.parametrize(("users", "level"), [(694, "ok"), (695, "amber"), (1600, "amber"), (1601, "red")])
def test_the_plan_may_take_half_of_what_a_load_process_carries_before_it_is_told(
    users: int, level: Level
) -> None:
    """Read 100,000 chunks/s and begin a request each 4.1 s: 0.5 and 0.22 ms a second of a stream."""
    check = echo_check(ECHO, FIT, LoadPlan(users=users, tokens_per_s=50.0))
    assert check.level == level
    assert "0.9 ms a request: 1,390 streams of 200 tokens at 50/s" in check.said
    assert check.figures["chunks_per_cpu_s"] == 100_000
    assert check.figures["carried_streams"] == pytest.approx(1 / (50 / 100_000 + 0.0009 / 4.1), abs=0.1)


def test_short_answers_cost_more_requests_and_stop_no_run() -> None:
    check = echo_check(ECHO, FIT, LoadPlan(users=400, answer_tokens=1))
    assert (check.level, "take 320%" in check.said) == ("amber", True)


def test_load_processes_beyond_the_processors_carry_nothing() -> None:
    two = echo_check(ECHO, replace(FIT, cpus=2), LoadPlan(users=3000, processes=2))
    eight = echo_check(ECHO, replace(FIT, cpus=2), LoadPlan(users=3000, processes=8))
    assert two.said == eight.said
    assert "2,780 streams" in two.said


def test_a_trial_that_broke_is_told_and_stops_nothing() -> None:
    assert echo_check(None, FIT, PLAN).level == "amber"
