"""Which wall: eight causes built into servers and clients, and the evidence that names each."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
from fake_run import FakeRun, FakeStage, verdict_of
from known_walls import CAUSES, known_wall

from loadtest.reporter.observation import FirstTokens, Observation, StageObservation, TokenRate, Wall
from loadtest.reporter.pages import html_page, markdown_page
from loadtest.reporter.walls import name_wall
from loadtest.sequential import theil_sen

SEEDS = 5


@cache
def observed(cause: str, seed: int) -> Observation:
    return known_wall(cause, seed).observe()


@pytest.mark.parametrize("cause", CAUSES)
def test_a_wall_that_was_built_is_the_wall_that_is_named(cause: str) -> None:
    named = [observed(cause, seed).wall.name for seed in range(SEEDS)]
    assert named.count(cause) >= SEEDS - 1  # type: ignore[arg-type]


def test_of_forty_walls_at_most_two_are_named_wrong() -> None:
    right = sum(observed(cause, seed).wall.name == cause for cause in CAUSES for seed in range(SEEDS))
    assert right >= 38


def test_the_client_is_never_taken_for_the_cache_and_the_cache_comes_second() -> None:
    for seed in range(SEEDS):
        wall = observed("client", seed).wall
        assert wall.name == "client"
        assert wall.runner_up is not None
        assert wall.runner_up.name == "kv"  # the same server is a kv wall for a client that keeps up
        assert "preemptions" in wall.runner_up.evidence


def stage(**seen: object) -> StageObservation:
    """A calm stage of 40 users that broke its latency limit, with other figures in its place."""
    stages = verdict_of(FakeRun(stages=(FakeStage(users=40, ttft_s=3.0),))).observation.stages
    return replace(stages[0], **seen)  # type: ignore[arg-type]


def calm(**seen: object) -> StageObservation:
    return stage(users=20, in_flight_mean=20.0, faults=(), slo_violations=0, **seen)


def wall_of(broken: StageObservation, *below: StageObservation, slots: int | None = 128) -> Wall:
    return name_wall((*below, broken), broken, slots)


def test_first_tokens_that_the_server_made_early_were_late_in_front_of_it() -> None:
    starved = stage(first_tokens=FirstTokens(client_s=3.0, server_s=0.2), preemptions=4.0)
    wall = wall_of(starved)
    assert wall.name == "network"
    assert "3,000 ms at 40 users by our clock and 200 ms by the engine's" in wall.evidence
    assert wall.runner_up is not None
    assert wall.runner_up.name == "kv"


def test_a_long_way_to_the_server_is_no_wall() -> None:
    far = FirstTokens(client_s=0.25, server_s=0.05)
    assert wall_of(stage(first_tokens=far), calm(first_tokens=far)).name == "slo"
    assert wall_of(stage(first_tokens=far)).name == "network"  # nothing lower to compare it with
    starved = FirstTokens(client_s=0.55, server_s=0.05)  # no way is that long
    assert wall_of(stage(first_tokens=starved), calm(first_tokens=starved)).name == "network"


def test_first_tokens_that_wait_in_the_engine_are_not_in_front_of_it() -> None:
    queued = stage(first_tokens=FirstTokens(client_s=3.0, server_s=2.9), preemptions=4.0)
    assert wall_of(queued).name == "kv"


def test_a_queue_that_surely_grows_is_a_queue_before_its_median_is() -> None:
    times = [float(second) for second in range(30)]
    growing = theil_sen(times, [0.0] * 15 + [float(n) for n in range(15)])
    noisy = theil_sen(times, [float(n % 3 == 0) for n in range(30)])
    assert growing.low > 0 >= noisy.low
    full = {"waiting_median": 0.0, "running_max": 32.0, "window_s": 30.0}
    wall = wall_of(stage(waiting_growth=growing, **full), slots=32)
    assert wall.name == "slots"
    assert "the queue grew by" in wall.evidence
    assert wall_of(stage(waiting_growth=noisy, **full), slots=32).name == "slo"


def flat(error: float) -> tuple[StageObservation, StageObservation]:
    """Twice the requests make 2% more tokens a second, each rate known to `error`."""
    lower = calm(token_rate=TokenRate(per_s=1000.0, error_per_s=error))
    return lower, stage(in_flight_mean=40.0, token_rate=TokenRate(per_s=1020.0, error_per_s=error), faults=())


def test_throughput_that_stands_still_while_the_limits_hold_is_the_plateau() -> None:
    wall = name_wall(flat(error=10.0), None, 128)
    assert wall.name == "plateau"
    assert "1,000 tokens/s at 20 users and 1,020 at 40 users" in wall.evidence


def test_throughput_that_is_not_known_well_enough_is_no_plateau() -> None:
    assert name_wall(flat(error=60.0), None, 128).name == "none"
    assert name_wall(flat(error=10.0)[1:], None, 128).name == "none"


def test_answers_that_began_long_before_hide_no_plateau() -> None:
    seen = observed("plateau", 4)
    top = seen.stages[-1]
    assert top.token_rate is not None
    assert top.output_tokens_per_s > 1.01 * top.token_rate.per_s, "many happened to end in that window"
    assert seen.wall.name == "plateau"


def test_a_flat_throughput_is_the_runner_up_of_a_latency_limit() -> None:
    lower, top = flat(error=10.0)
    wall = wall_of(replace(top, faults=("slow",)), lower)
    assert wall.name == "slo"
    assert wall.runner_up is not None
    assert wall.runner_up.name == "plateau"


def test_a_full_cache_behind_full_slots_is_the_runner_up() -> None:
    full = stage(waiting_median=5.0, running_max=32.0, kv_usage_max_ratio=0.97)
    wall = wall_of(full, slots=32)
    assert (wall.name, wall.runner_up.name if wall.runner_up else "") == ("slots", "kv")


def test_the_report_shows_the_runner_up() -> None:
    late = FakeStage(users=40, running=35.0, waiting=5.0, kv_usage_ratio=0.99, preemptions=9, ttft_s=3.0)
    run = FakeRun(stages=(FakeStage(users=24), late))
    verdict = verdict_of(run)
    assert verdict.observation.wall.name == "kv"
    for page in (html_page(verdict, run.manifest, "runs/x"), markdown_page(verdict, run.manifest, "runs/x")):
        assert "Runner-up: slo; " in page


def test_the_four_concurrencies_stand_in_the_table_of_every_load() -> None:
    closed = FakeRun(stages=(FakeStage(users=24, running=22.0, waiting=2.0),))
    rated = FakeRun(stages=(FakeStage(users=60, rate_per_s=2.5, running=11.0, waiting=1.0),))
    thinking = FakeRun(
        stages=(FakeStage(users=30, running=14.0, waiting=1.0),), thinking_s=5.0, has_pauses=True
    )
    for run, cells in (
        (closed, "| 24 | 24.0 | 22.0 | 2.0 |"),
        (rated, "| 2.5/s | 60.0 | 11.0 | 1.0 |"),
        (thinking, "| 30 | 15.0 | 14.0 | 1.0 |"),
    ):
        page = markdown_page(verdict_of(run), run.manifest, "runs/x")
        assert "| set | in flight | running | waiting |" in page
        assert cells in page
