"""How a run stands while it goes on: the levels hold or break live as the report will say."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from fake_run import FakeRun, FakeStage, verdict_of
from replay import Replay

from loadtest.conductor.live.holding import faults
from loadtest.conductor.live.news import news_of
from loadtest.conductor.live.standing_text import LEVEL_COLUMNS, capacity_rows, level_rows
from loadtest.run_folder import PlannedStage
from loadtest.scenario import Limits

GOOD = FakeStage(users=20)
RUNS = {
    "nothing breaks": FakeRun(stages=(GOOD, FakeStage(users=30))),
    "preemptions": FakeRun(stages=(GOOD, FakeStage(users=50, preemptions=30))),
    "a queue": FakeRun(stages=(GOOD, FakeStage(users=50, waiting=12.0))),
    "slow answers": FakeRun(stages=(GOOD, FakeStage(users=50, slow_share=0.2))),
    "failures": FakeRun(stages=(GOOD, FakeStage(users=50, failing="http_5xx", failing_share=0.1))),
    "no metrics": FakeRun(stages=(GOOD, FakeStage(users=50, slow_share=0.2)), with_metrics=False),
}


def rows_of(replay: Replay) -> dict[str, tuple[str, str]]:
    return {what: (figure, why) for what, figure, why in capacity_rows(replay.standing)}


def rows_of_played(replay: Replay) -> dict[str, tuple[str, str]]:
    replay.play()
    return rows_of(replay)


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("workers", [1, 3])
def test_live_levels_hold_or_break_as_the_report_will_say(name: str, workers: int, tmp_path: Path) -> None:
    run = RUNS[name]
    standing = Replay(run, tmp_path, workers).play()
    live = [not faults(level, run.limits) for level in standing.levels]
    assert live == [stage.held for stage in verdict_of(run).observation.stages]


def test_a_level_is_judged_from_when_it_has_settled_but_no_preemption_is_forgiven(tmp_path: Path) -> None:
    run = FakeRun(stages=(FakeStage(users=50, preemptions=60),))
    (level,) = Replay(run, tmp_path).play(seconds=9).levels
    assert not level.is_settled
    assert faults(level, run.limits) == [f"{level.preemptions:.0f} preemptions"]


def test_a_server_that_restarts_counts_its_preemptions_from_zero(tmp_path: Path) -> None:
    replay = Replay(FakeRun(stages=(FakeStage(users=50, preemptions=60),)), tmp_path)
    standing = replay.play(seconds=30)
    before = standing.levels[-1].preemptions
    assert before is not None
    assert standing.seen is not None
    restarted = dataclasses.replace(
        standing.seen, signals={**standing.seen.signals, "preemptions_total": 2.0}
    )
    replay._collector.append(restarted)
    standing.look()
    assert standing.levels[-1].preemptions == before + 2


def test_before_the_first_run_there_is_one_row_and_nothing_to_export(tmp_path: Path) -> None:
    standing = Replay(RUNS["nothing breaks"], tmp_path).standing
    assert [what for what, _, _ in capacity_rows(standing)] == ["Verdict so far"]
    assert standing.figures() is None
    assert list(level_rows(standing)) == []


def test_while_a_run_goes_on_the_wall_so_far_is_named_with_what_it_stands_on(tmp_path: Path) -> None:
    replay = Replay(RUNS["preemptions"], tmp_path)
    replay.play(seconds=100)
    told = rows_of(replay)
    assert told["Verdict so far"][0] == "✗ 50 users are too many"
    assert "preemptions" in told["Verdict so far"][1]
    assert told["Level now"] == ("50 users", "stage 2 of 2, 50 users, judged for 30 s")
    assert told["Stage 1: 20 users"][0] == "✓ holds"
    assert told["Stage 2: 50 users"][0] == "✗ breaks"
    assert told["KV cache"] == ("■■■■■■■■■■ 100%", "100% predicted for 50 users")


def test_when_the_rows_are_judged_the_verdict_is_theirs(tmp_path: Path) -> None:
    run = FakeRun(stages=tuple(FakeStage(users=users) for users in (20, 25, 30)))
    replay, verdict = Replay(run, tmp_path), verdict_of(run)
    replay.play().judged(verdict)
    told = rows_of(replay)
    assert verdict.status == "PASS"
    assert told["Verdict"] == ("✓ PASS", verdict.reason)
    assert told["Safe limit"][0] == f"{verdict.n_safe} parallel requests"
    figures = replay.standing.figures()
    assert figures is not None
    assert figures.gauges["safe_limit_concurrency"] == verdict.n_safe
    assert figures.gauges["observed_max_concurrency"] == 30


def test_a_soak_promises_no_verdict_on_this_page(tmp_path: Path) -> None:
    replay = Replay(FakeRun(stages=(GOOD, FakeStage(users=30))), tmp_path)
    assert "reload this page" in rows_of_played(replay)["Verdict so far"][1]
    run = replay.standing.run
    assert run is not None
    dip = PlannedStage(index=1, label="", users=0, hold_s=60.0, settle_s=0.0, spawn_rate_per_s=1.0)
    manifest = dataclasses.replace(run.run.manifest, stages=(dip,))
    run.run = dataclasses.replace(run.run, manifest=manifest)
    assert rows_of(replay)["Verdict so far"] == (
        "✓ 30 users hold",
        "no wall so far; what drifts is told by its report",
    )


def test_what_failed_signs_no_limit(tmp_path: Path) -> None:
    run = FakeRun(stages=(FakeStage(users=20, failing="http_5xx", failing_share=0.5),))
    replay = Replay(run, tmp_path)
    replay.play().judged(verdict_of(run))
    figures = replay.standing.figures()
    assert figures is not None
    assert "safe_limit_concurrency" not in figures.gauges
    assert rows_of(replay)["Safe limit"][0] == "not signed"


@pytest.mark.parametrize(
    ("seen", "told"),
    [
        ({}, ""),
        ({"steal_ratios": (0.01,), "cpu_wait_ratios": (0.04,)}, ""),
        ({"steal_ratios": (0.12,)}, ", hypervisor took 12% of the machine"),
        ({"cpu_wait_ratios": (0.12,)}, ", without a processor 12% of the time"),
    ],
)
def test_a_load_generator_tells_what_others_take_of_it(
    seen: dict[str, tuple[float, ...]], told: str, tmp_path: Path
) -> None:
    run = dataclasses.replace(FakeRun(stages=(GOOD,)), **seen)
    _, why = rows_of_played(Replay(run, tmp_path))["Load generator"]
    assert why.endswith(f"garbage collection 1 ms{told}")


def test_levels_are_one_row_each_with_every_column(tmp_path: Path) -> None:
    standing = Replay(RUNS["preemptions"], tmp_path).play()
    first, second = (dict(zip(LEVEL_COLUMNS, row, strict=True)) for row in level_rows(standing))
    assert (first["users"], first["faults"]) == (20, "")
    assert "preemptions" in str(second["faults"])
    assert second["ttft_mean_s"] == pytest.approx(0.1)


def test_a_new_run_begins_with_nothing_of_the_last_one(tmp_path: Path) -> None:
    run = RUNS["preemptions"]
    replay = Replay(run, tmp_path)
    standing = replay.play()
    standing.judged(verdict_of(run))
    standing.begins(standing.run)  # type: ignore[arg-type]
    assert (standing.levels, standing.verdict) == ([], None)


def test_words_of_a_server_stay_one_line_of_text(tmp_path: Path) -> None:
    replay = Replay(FakeRun(stages=(GOOD,), model="m\x1b[31m\n<b>"), tmp_path)
    replay.play()
    assert all(text.isprintable() for row in capacity_rows(replay.standing) for text in row)


def test_news_that_no_worker_of_ours_would_send_are_refused(tmp_path: Path) -> None:
    replay = Replay(RUNS["a queue"], tmp_path)
    message = replay._message(0, replay.counts[0])
    message["counts"] = {**message["counts"], "outcomes": {"x" * 1000: 1}}
    with pytest.raises(ValueError, match="no outcome"):
        news_of(message, Limits(ttft_s=2.0))
