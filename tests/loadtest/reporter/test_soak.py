"""A soak's verdict has four words, and its report says what drifts, hour by hour."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from fake_run import FakeRun, FakeStage
from fake_soak import FakeSoak

from loadtest.reporter.soak import SoakVerdict, judge_soak
from loadtest.reporter.soak_pages import soak_html, soak_json, soak_lines, soak_markdown
from loadtest.run_folder import Manifest, PlannedStage

SEEN = {"preemptions_total": lambda hour: 0.0}
MIB = 2**20


def a_manifest(soak: FakeSoak, **changes: Any) -> Manifest:
    stages = tuple(
        PlannedStage(
            index=index, label="", users=8 * (1 - index % 2), hold_s=1800.0, settle_s=0.0, spawn_rate_per_s=1
        )
        for index in range(2 * soak.hours)
    )
    manifest = dataclasses.replace(FakeRun(stages=(FakeStage(users=8),)).manifest, stages=stages)
    return dataclasses.replace(manifest, **changes)


def judged(soak: FakeSoak, **changes: Any) -> SoakVerdict:
    return judge_soak(soak.rows(), a_manifest(soak, **changes), None)


def test_four_hours_in_which_nothing_drifts_pass() -> None:
    verdict = judged(FakeSoak(engine=SEEN))
    assert (verdict.status, verdict.exit_code) == ("PASS", 0), verdict.reason
    assert "nothing drifts over 4.0 hours at full load" in verdict.reason
    assert (verdict.users, verdict.hours_planned) == (8, 4.0)
    assert len(verdict.observation.stages) == 4  # a dip is no stage that failed


def test_a_drift_fails_with_its_projection() -> None:
    memory = {**SEEN, "process_resident_memory_bytes": lambda hour: 4096 * MIB + hour * 40 * MIB}
    verdict = judged(FakeSoak(engine=memory))
    assert (verdict.status, verdict.exit_code) == ("FAIL", 1)
    assert "memory of the server (t): drifts at 4,096 MiB, +40 MiB an hour" in verdict.reason


def test_a_soak_of_minutes_is_inconclusive_and_says_how_long_it_would_need() -> None:
    verdict = judged(FakeSoak(hours=1, engine=SEEN))
    assert (verdict.status, verdict.exit_code) == ("INCONCLUSIVE", 4)
    assert "are too short for a trend: they need 2.0 hours more" in verdict.reason


def test_kv_blocks_that_stay_fail_even_a_short_soak_with_the_hour_at_which_the_cache_is_full() -> None:
    verdict = judged(FakeSoak(hours=2, engine=SEEN, kv_at_idle=lambda hour: 0.03 * (1 + int(hour))))
    assert (verdict.status, verdict.exit_code) == ("FAIL", 1)
    assert "6.00% of the blocks stay in use while nothing runs" in verdict.reason
    assert "90% in 28.0 hours" in verdict.reason  # (0.90 - 0.06) / 0.03


def test_a_restart_fails_with_the_exit_code_of_a_server_that_died() -> None:
    verdict = judged(FakeSoak(engine=SEEN, restart_at_h=2.5))
    assert (verdict.status, verdict.exit_code) == ("FAIL", 3)
    assert verdict.reason.startswith("t restarted after 2.5 hours")


def test_a_soak_that_was_stopped_is_inconclusive_though_nothing_drifts() -> None:
    verdict = judged(FakeSoak(engine=SEEN), state="interrupted")
    assert (verdict.status, verdict.reason) == ("INCONCLUSIVE", "it was stopped before its end")


def test_a_kv_cache_that_was_never_seen_at_idle_is_a_doubt() -> None:
    rows = FakeSoak(engine={**SEEN, "running": lambda hour: 8.0}).rows()
    verdict = judge_soak(rows, a_manifest(FakeSoak()), None)
    assert verdict.status == "INCONCLUSIVE"
    assert "the KV cache was never seen at idle" in verdict.reason


def test_requests_that_fail_fail_the_soak() -> None:
    rows = FakeSoak(hours=4, engine=SEEN).rows()
    records = [
        dataclasses.replace(record, outcome="http_5xx") if record.seq % 10 == 0 else record
        for record in rows.requests
    ]
    rows = dataclasses.replace(rows, requests=type(rows.requests).of(records))
    verdict = judge_soak(rows, a_manifest(FakeSoak()), None)
    assert (verdict.status, verdict.exit_code) == ("FAIL", 1)
    assert "4 of 4 spells did not hold" in verdict.reason


def test_a_spell_in_which_the_load_generator_stood_still_says_nothing_of_the_server() -> None:
    soak = FakeSoak(
        engine=SEEN, client={"client_loop_lag_max_s": lambda hour: 0.4 if 1 <= hour < 1.5 else 0.001}
    )
    slow = dataclasses.replace(soak, ttft_s=lambda hour: 9.0 if 1 <= hour < 1.1 else 0.2)
    verdict = judged(slow)
    assert [stage.held for stage in verdict.observation.stages] == [True, False, True, True]
    assert (verdict.status, verdict.exit_code) == ("PASS", 0), verdict.reason
    assert "1 of 4 spells were not judged, for the load generator: its loop ran 400 ms late" in verdict.reason
    without = dataclasses.replace(slow, client={})
    assert "1 of 4 spells did not hold" in judged(without).reason


def test_throughput_that_falls_drifts_and_that_rises_does_not() -> None:
    for per_minute, status in (
        (lambda minute: 40 - minute // 12, "drifts"),
        (lambda minute: 5 + minute // 12, "steady"),
    ):
        soak = FakeSoak(engine=SEEN, requests_a_minute=per_minute)
        (found,) = (one for one in judged(soak).drift.quantities if one.quantity.name == "throughput")
        assert found.status == status, found


def test_preemptions_that_become_more_drift_by_their_rate() -> None:
    soak = FakeSoak(engine={"preemptions_total": lambda hour: 300 * hour * hour})
    (found,) = (one for one in judged(soak).drift.quantities if one.quantity.name == "preemptions_total")
    assert found.status == "drifts"
    assert found.rise_per_h is not None
    assert found.rise_per_h.slope == pytest.approx(2 * 300 / 60 / 2, rel=0.1)  # two looks a minute see half


def test_the_lines_begin_with_the_load_and_end_with_the_verdict() -> None:
    lines = soak_lines(judged(FakeSoak(hours=2, engine=SEEN, kv_at_idle=lambda hour: 0.03)), "r/report.html")
    assert [line.split()[0] for line in lines] == ["Load", "Held", "Drift", "KV", "Client", "SOAK"]
    assert lines[0].startswith("Load        8 users for 2.0 hours")
    assert "8 parallel requests    FAIL    r/report.html" in lines[-1]


def test_the_report_shows_each_quantity_by_the_hour_and_no_script() -> None:
    soak = FakeSoak(engine={**SEEN, "process_open_fds": lambda hour: 100 + 10 * hour})
    verdict = judged(soak)
    page = soak_html(verdict, a_manifest(soak), "runs/x")
    assert "<title>FAIL: 8" in page
    assert "<h1>Soak" in page
    assert "file descriptors of the server" in page
    assert "104.8 · 114.8 · 124.8 · 134.8" in page  # the medians of four hours that end with a pause
    assert "<script" not in page
    assert "What stopped it" not in page
    assert soak_markdown(verdict, a_manifest(soak), "runs/x").startswith(
        "# FAIL: soak of 8 parallel requests"
    )


def test_a_machine_reads_the_same_from_the_json() -> None:
    soak = FakeSoak(engine=SEEN)
    body = json.loads(soak_json(judged(soak), a_manifest(soak)))
    assert (body["kind"], body["status"], body["users"], len(body["spells"])) == ("soak", "PASS", 8, 4)
    ttft = next(one for one in body["drift"]["quantities"] if one["quantity"]["name"] == "ttft")
    assert list(ttft["hourly"]) == ["0", "1", "2", "3"]


def test_a_servers_words_are_inert_in_every_form() -> None:
    soak = FakeSoak(engine=SEEN, target="<script>alert(1)</script>|\x1b[31m")
    verdict, manifest = judged(soak), a_manifest(soak)
    assert "<script>" not in soak_html(verdict, manifest, "runs/x")
    assert "\x1b" not in "".join(soak_lines(verdict, "r"))
    assert "<script>" not in soak_markdown(verdict, manifest, "runs/x")


def test_a_manifest_with_dips_is_a_soak_and_one_without_is_not() -> None:
    assert a_manifest(FakeSoak()).is_soak
    assert not FakeRun(stages=(FakeStage(users=8),)).manifest.is_soak
