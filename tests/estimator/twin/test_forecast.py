"""What a forecast says of a concurrency follows from the scheduler and the cost of its steps, by a seed."""

from __future__ import annotations

from dataclasses import replace
from operator import attrgetter

import pytest

from estimator.capacity import Prediction, predict
from estimator.spec import Lengths, Workload
from estimator.twin.cost import FrontEndCost, ServerCost, scaled
from estimator.twin.forecast import Forecast, Row, forecast, levels_of, mean_tokens
from estimator.twin.goals import Goal
from estimator.twin.profile import TwinProfile, read_profile

TINY = read_profile("tiny")
CHAT = Workload.constant(256, 256)
COST = ServerCost(step=TINY.step_cost, low_factor=0.6, high_factor=2.0)
GOAL = Goal(ttft_s=2.0, tpot_s=0.2)
LATENCIES = ("ttft_p50_s", "ttft_p95_s", "tpot_p50_s", "tpot_p95_s")


def arithmetic(profile: TwinProfile = TINY, workload: Workload = CHAT) -> Prediction:
    return predict(profile.pool, workload, max_model_len=profile.max_model_len, slots=profile.max_num_seqs)


def likely(row: Row, name: str) -> float:
    value: float = getattr(row.likely, name)
    return value


@pytest.fixture(scope="module")
def cast() -> Forecast:
    return forecast(TINY.limits, COST, arithmetic(), GOAL, seed=7)


def test_the_levels_run_from_a_quarter_to_half_as_much_again_as_fits(cast: Forecast) -> None:
    assert [row.users for row in cast.rows] == [10, 20, 31, 34, 41, 51, 61]
    assert arithmetic().n_guaranteed == 31
    assert arithmetic().n_sustained == 34


def test_the_plateau_of_running_is_the_saturation_of_the_closed_form(cast: Forecast) -> None:
    assert cast.full_by == "kv"
    assert cast.plateau == pytest.approx(arithmetic().n_saturation, rel=0.03)


def test_latencies_rise_with_concurrency(cast: Forecast) -> None:
    for name in LATENCIES:
        values = [likely(row, name) for row in cast.rows[:6]]
        assert values == sorted(values)
        assert values[-1] > 1.5 * values[0]
    waits = [likely(row, "ttft_p95_s") for row in cast.rows]
    assert waits[-1] == max(waits)


def test_nothing_waits_or_preempts_up_to_what_is_guaranteed_and_both_do_beyond(cast: Forecast) -> None:
    for row in cast.rows:
        crowded = row.users > 40.9
        assert (row.likely.preemptions_per_hour > 0) == crowded
        assert (row.likely.waiting > 0.5) == crowded
        assert row.likely.running + row.likely.waiting == pytest.approx(row.users)


def test_throughput_rises_until_the_cache_is_full_and_no_further(cast: Forecast) -> None:
    rates = [likely(row, "output_tokens_per_s") for row in cast.rows]
    assert rates[:5] == sorted(rates[:5])
    assert max(rates[5:]) < 1.02 * rates[4]


def test_intervals_contain_what_is_likely_and_span_the_range_of_the_cost(cast: Forecast) -> None:
    for row in cast.rows:
        for name in LATENCIES:
            interval = row.interval(attrgetter(name))
            assert interval.likely == likely(row, name)
            assert interval.low == pytest.approx(0.6 * interval.likely)
            assert interval.high == pytest.approx(2.0 * interval.likely)
        assert row.interval(attrgetter("output_tokens_per_s")).low == pytest.approx(
            likely(row, "output_tokens_per_s") / 2.0
        )


def test_a_dearer_step_only_slows_the_clock() -> None:
    """The shortcut of the range, against a simulation of the slower server itself."""
    stretched = forecast(TINY.limits, COST, arithmetic(), GOAL, levels=[45]).rows
    slower = ServerCost(step=scaled(TINY.step_cost, 2.0))
    simulated = forecast(TINY.limits, slower, arithmetic(), GOAL, levels=[45]).rows
    for quick, slow in zip(stretched, simulated, strict=True):
        for name in (*LATENCIES, "running", "waiting", "requests_per_s", "within_ratio"):
            assert getattr(quick.slow, name) == pytest.approx(getattr(slow.likely, name), rel=1e-6)


def test_a_front_end_is_no_slower_when_the_gpu_is() -> None:
    front = FrontEndCost(request_s=0.5)
    cost = replace(COST, front_end=front)
    row = forecast(TINY.limits, cost, arithmetic(), GOAL, levels=[10]).rows[0]
    assert row.likely.ttft_p50_s > 0.5
    assert row.slow.ttft_p50_s == pytest.approx(0.5 + 2.0 * (row.likely.ttft_p50_s - 0.5), rel=0.05)
    assert row.slow.tpot_p50_s == pytest.approx(2.0 * row.likely.tpot_p50_s, rel=0.1)


def test_the_first_level_over_a_limit_ends_n_slo(cast: Forecast) -> None:
    assert cast.first_broken is not None
    assert cast.first_broken.users == 61
    assert cast.first_broken.likely.broken == ("ttft_s",)
    assert cast.n_slo() == 51
    assert cast.n_slo(attrgetter("slow")) < cast.n_slo() <= cast.n_slo(attrgetter("fast"))


def test_a_limit_nobody_can_keep_leaves_nothing_and_none_set_breaks_nothing() -> None:
    strict = forecast(TINY.limits, COST, arithmetic(), Goal(tpot_s=0.001), levels=[31])
    assert strict.n_slo() == 0
    assert strict.rows[0].likely.within_ratio == 0.0
    assert strict.rows[0].likely.broken == ("tpot_s",)
    free = forecast(TINY.limits, COST, arithmetic(), Goal(), levels=[61])
    assert free.first_broken is None
    assert free.n_slo() == 61


def test_the_time_of_a_whole_request_can_be_limited() -> None:
    cast = forecast(TINY.limits, COST, arithmetic(), Goal(e2e_s=3.0), levels=[20, 41])
    assert cast.n_slo() == 20
    assert cast.rows[1].likely.broken == ("e2e_s",)


def test_slots_can_fill_before_the_cache() -> None:
    narrow = replace(TINY, max_num_seqs=8)
    cast = forecast(narrow.limits, COST, arithmetic(narrow), GOAL, levels=[12])
    assert cast.full_by == "slots"
    assert cast.full_at == 8
    assert cast.plateau == pytest.approx(8.0)
    assert levels_of(arithmetic(narrow)) == (2, 4, 6, 8, 10, 12)


def test_a_server_of_one_request_still_gets_six_levels() -> None:
    small = replace(TINY, num_gpu_blocks=80)
    workload = Workload.constant(1900, 100)
    levels = levels_of(arithmetic(small, workload))
    assert levels == (1, 2, 3, 4, 5, 6)


def test_without_a_queue_no_plateau_is_claimed() -> None:
    assert forecast(TINY.limits, COST, arithmetic(), GOAL, levels=[10]).plateau is None


def test_the_same_seed_gives_the_same_answer_and_another_another() -> None:
    drawn = Workload(
        input_tokens=Lengths(kind="uniform", min=50, max=400),
        output_tokens=Lengths(kind="lognormal", median=100.0, sigma=0.8, min=10, max=600),
    )
    one, same, other = (
        forecast(TINY.limits, COST, arithmetic(workload=drawn), GOAL, seed=seed, levels=[20])
        for seed in (1, 1, 2)
    )
    assert one == same
    assert one.rows[0].likely.ttft_p95_s != other.rows[0].likely.ttft_p95_s


def test_enough_requests_are_judged_for_a_percentile(cast: Forecast) -> None:
    for row in cast.rows:
        assert 190 <= row.likely.requests <= 500


def test_littles_law_binds_rate_and_stay(cast: Forecast) -> None:
    for row in cast.rows[:4]:
        stay_s = row.likely.ttft_p50_s + 255 * row.likely.tpot_p50_s
        assert row.likely.requests_per_s * stay_s == pytest.approx(row.users, rel=0.01)


def test_the_mean_of_lengths_is_that_of_their_distribution() -> None:
    assert mean_tokens(Lengths.constant(7)) == 7
    assert mean_tokens(Lengths(kind="uniform", min=1, max=99)) == pytest.approx(50, abs=1)


def test_a_cached_prefix_changes_nothing_while_nothing_is_preempted() -> None:
    cached = replace(TINY, enable_prefix_caching=True).limits
    for users in (31, 34):
        plain = forecast(TINY.limits, COST, arithmetic(), GOAL, levels=[users])
        assert forecast(cached, COST, arithmetic(), GOAL, levels=[users]) == plain
