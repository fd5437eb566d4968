"""A soak drifts when its trend is no chance and would matter; everything else is said as it is."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from fake_soak import MINUTE_NS, FakeSoak

from loadtest.columns import Floats, columns_of
from loadtest.records import Event, RequestRecord
from loadtest.reporter.drift import DriftPlan, DriftReport, QuantityDrift, drift_of, judge_minutes
from loadtest.reporter.drift_quantities import QUANTITIES, Quantity
from loadtest.reporter.drift_series import latency_minutes, load_of
from loadtest.reporter.drift_step import steps_of
from loadtest.reporter.drift_text import drift_lines
from loadtest.request_table import RequestTable, part_of

GIB = 2**30
ANY_RISE = Quantity(name="any", title="any", unit="count", rise=0.0)


def of(report: DriftReport, name: str) -> QuantityDrift:
    (found,) = (one for one in report.quantities if one.quantity.name == name)
    return found


def text_of(report: DriftReport) -> str:
    return "\n".join(drift_lines(report))


def test_a_steady_soak_is_steady_and_says_what_was_not_seen() -> None:
    report = drift_of(FakeSoak().rows())
    assert report.status == "steady"
    assert {one.quantity.name: one.status for one in report.quantities} == {
        "ttft": "steady",
        "tpot": "steady",
        "throughput": "steady",
        "errors": "steady",
        "preemptions_total": "not seen",
        "waiting": "steady",
        "process_resident_memory_bytes": "not seen",
        "process_open_fds": "not seen",
        "gpu_memory_used_bytes": "not seen",
        "client_rss_bytes": "not seen",
        "kv_idle": "steady",
    }
    assert report.hours == pytest.approx(4, abs=0.05)


def test_a_ttft_that_rises_by_a_tenth_drifts_and_is_drawn_on_over_a_week() -> None:
    report = drift_of(FakeSoak(ttft_s=lambda hour: 0.2 + 0.005 * hour, noise_ratio=0.02).rows())
    ttft = of(report, "ttft")
    assert report.status == ttft.status == "drifts"
    assert of(report, "tpot").status == "steady"
    assert ttft.rise_per_h is not None
    assert ttft.rise_per_h.low < 0.005 < ttft.rise_per_h.high
    assert ttft.rise_projected == pytest.approx(0.005 * 7 * 24, rel=0.2)
    assert "TTFT: drifts at 199.7 ms, +5.2 ms an hour" in text_of(report)
    assert " ms in 7.0 days, 20.0 ms allowed" in text_of(report)


def test_a_ttft_that_falls_does_not_drift() -> None:
    assert of(drift_of(FakeSoak(ttft_s=lambda hour: 0.2 - 0.01 * hour).rows()), "ttft").status == "steady"


def test_a_real_trend_that_would_not_matter_is_steady() -> None:
    soak = FakeSoak(engine={"process_resident_memory_bytes": lambda hour: 4 * GIB + hour * 100_000})
    memory = of(drift_of(soak.rows()), "process_resident_memory_bytes")
    assert memory.p_value is not None
    assert memory.p_value < 1e-6
    assert memory.status == "steady"


def test_gpu_memory_that_is_full_within_the_week_drifts_though_it_grows_little() -> None:
    def soak(used: float) -> FakeSoak:
        return FakeSoak(
            gpu={
                "gpu_memory_used_bytes": lambda hour: used + hour * 2**20,
                "gpu_memory_total_bytes": lambda hour: 80 * GIB,
            }
        )

    assert of(drift_of(soak(60 * GIB).rows()), "gpu_memory_used_bytes").status == "steady"
    report = drift_of(soak(80 * GIB - 100 * 2**20).rows())
    assert of(report, "gpu_memory_used_bytes").status == "drifts"
    assert of(report, "gpu_memory_used_bytes").full_in_h == pytest.approx(96, abs=0.5)
    assert "full in 4.0 days" in text_of(report)


def test_how_much_memory_the_server_has_can_be_said() -> None:
    soak = FakeSoak(engine={"process_resident_memory_bytes": lambda hour: 4 * GIB + hour * 2**20})
    name = "process_resident_memory_bytes"
    assert of(drift_of(soak.rows()), name).status == "steady"  # 168 MiB of 4 GiB in a week
    assert of(drift_of(soak.rows(), DriftPlan(capacities={name: 5 * GIB})), name).status == "drifts"


def test_our_own_memory_may_grow_by_twenty_megabytes_an_hour() -> None:
    for rise, status in ((19e6, "steady"), (21e6, "drifts")):
        soak = FakeSoak(client={"client_rss_bytes": lambda hour, rise=rise: 2e8 + rise * hour})
        assert of(drift_of(soak.rows()), "client_rss_bytes").status == status


def test_three_hours_are_needed_for_a_trend() -> None:
    report = drift_of(FakeSoak(hours=2, ttft_s=lambda hour: 0.2 + hour).rows())
    assert report.status == of(report, "ttft").status == "too short"
    assert text_of(report).startswith("TOO SHORT TO TELL")


def test_blocks_that_stay_in_use_while_nothing_runs_are_a_leak() -> None:
    report = drift_of(FakeSoak(hours=2, kv_at_idle=lambda hour: 0.01 * int(hour)).rows())
    assert report.status == "drifts"  # two idle spells are enough for that
    assert "1.00% of the blocks stay in use while nothing runs" in text_of(report)


def test_a_pause_is_not_part_of_the_load() -> None:
    memory = FakeSoak(engine={"waiting": lambda hour: 0.0})
    load = load_of(memory.rows().events)
    assert load is not None
    assert [(stage.end_ns - stage.start_ns) // MINUTE_NS for stage in load.stages] == [58, 58, 58, 58]


def test_only_the_stages_of_most_users_count() -> None:
    def stage(index: int, users: int, minute: int) -> Event:
        data = {"index": index, "users": users, "settle_s": 60.0, "hold_s": 600.0}
        return Event(at_ns=minute * MINUTE_NS, event="stage", data=data)

    end = Event(at_ns=30 * MINUTE_NS, event="run_end", data={})
    load = load_of([stage(0, 4, 0), stage(1, 8, 10), stage(2, 4, 20), end])
    assert load is not None
    assert (load.start_ns, load.end_ns) == (11 * MINUTE_NS, 20 * MINUTE_NS)


def test_a_restart_is_told_even_when_all_else_is_steady() -> None:
    report = drift_of(FakeSoak(restart_at_h=2.5).rows())
    assert report.status == "drifts"
    assert "t: the server restarted after 2.5 hours" in text_of(report)


def test_a_step_is_found_at_its_hour_and_noise_is_none() -> None:
    rng = np.random.default_rng(3)
    hours = (np.arange(24) + 0.5) / 6
    noise: Floats = rng.standard_normal(24)
    still = dict(zip(hours.tolist(), noise.tolist(), strict=True))
    jumped = {hour: value + 6 * (hour > 2) for hour, value in still.items()}
    climbing = {hour: value + 4 * hour for hour, value in still.items()}
    assert steps_of(still, slope=0.0, step_min=0.0) == ()
    assert 2 in [step.at_h for step in steps_of(jumped, slope=1.0, step_min=0.0)]
    assert steps_of(jumped, slope=1.0, step_min=10.0) == ()
    assert steps_of(climbing, slope=4.0, step_min=0.0) == ()


def test_a_ttft_that_jumps_after_two_hours_is_told_with_its_hour() -> None:
    report = drift_of(FakeSoak(ttft_s=lambda hour: 0.2 if hour < 2 else 0.3).rows())
    assert report.status == "drifts"
    assert "ms at hour 2" in text_of(report)


def test_a_run_without_a_stage_is_not_seen() -> None:
    rows = dataclasses.replace(FakeSoak(hours=1).rows(), events=())
    assert drift_of(rows).status == "not seen"
    assert len(drift_of(rows).quantities) == len(QUANTITIES) + 1


def test_a_minute_that_two_parts_share_has_one_median() -> None:
    rows = FakeSoak(hours=1, requests_a_minute=6).rows()
    load = load_of(rows.events)
    assert load is not None
    records: list[RequestRecord] = list(rows.requests)
    pieces = [records[at : at + 10] for at in range(0, len(records), 10)]  # a minute of six is often cut
    cut = RequestTable(tuple(part for piece in pieces for part in part_of(columns_of(piece))))
    assert latency_minutes(cut, load) == latency_minutes(rows.requests, load)


@pytest.mark.parametrize(("phi", "rise", "least", "most"), [(0.5, 0.0, 0, 4), (0.5, 2.0, 36, 40)])
def test_resembling_minutes_seldom_cry_wolf_and_a_drift_of_two_deviations_is_seen(
    phi: float, rise: float, least: int, most: int
) -> None:
    """A small look at what benchmarks/drift.py measures in full."""
    rng = np.random.default_rng(7)
    alarms = 0
    for _ in range(40):
        news = rng.standard_normal(240) * np.sqrt(1 - phi**2)
        values, value = [], float(rng.standard_normal())
        for minute in range(240):
            value = phi * value + float(news[minute])
            values.append(100 + value + rise * minute / 239)
        alarms += judge_minutes(ANY_RISE, "", dict(enumerate(values)), None, DriftPlan()).status == "drifts"
    assert least <= alarms <= most
