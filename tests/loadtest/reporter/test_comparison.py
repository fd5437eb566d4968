"""A change is told from noise by two intervals; what chance does to equal runs stays below its share."""

from __future__ import annotations

import dataclasses
import json
import math
from functools import cache
from itertools import pairwise
from statistics import NormalDist

import numpy as np
import pytest
from fake_run import FakeRun, FakeStage, verdict_of
from hypothesis import given
from hypothesis import strategies as st

from loadtest.columns import Floats
from loadtest.reporter.comparison import Change, Comparison, compare
from loadtest.reporter.comparison_text import comparison_dict, comparison_text
from loadtest.reporter.snapshot import Figure, Level, Snapshot, quantile_figure, snapshot

RUN = FakeRun(stages=(FakeStage(users=20), FakeStage(users=44, preemptions=5, kv_usage_ratio=1.0)))


@cache
def taken(run: FakeRun = RUN) -> Snapshot:
    return snapshot(run.rows().requests, run.manifest, verdict_of(run))


def with_figures(**figures: Figure) -> Snapshot:
    """One level of 20 users with these figures."""
    level = Level(users=20, rate_per_s=None, held=True, requests=100, figures=figures)
    return dataclasses.replace(taken(), levels=(level,))


def change_of(found: Comparison, name: str) -> Change:
    (change,) = (one for one in found.changes if one.name == name)
    return change


def figure(value: float, half: float = 0.0) -> Figure:
    return Figure(value=value, low=value - half, high=value + half)


def test_limits_carry_the_bracket_in_which_they_lie() -> None:
    run = taken()
    assert run.n_max == Figure(value=20, low=20, high=43)
    # 511 blocks, 16 a request at its longest: 31 guaranteed, 0.8 x 20 signed, at most 0.8 x 31
    assert run.n_safe == Figure(value=16, low=16, high=24)


def test_a_run_without_a_wall_has_no_upper_end() -> None:
    run = taken(FakeRun(stages=(FakeStage(users=20),), with_prediction=False))
    assert (run.n_max.high, run.n_safe.high) == (None, None)


def test_one_figure_is_its_own_interval_and_two_of_them_add_as_squares() -> None:
    old, new = with_figures(ttft_p50_s=figure(1.0)), with_figures(ttft_p50_s=figure(1.1))
    change = change_of(compare(old, new), "ttft_p50_s")
    assert (change.ratio, change.low, change.high) == pytest.approx((0.1, 0.1, 0.1))
    low, high = 1 / 1.2, 1.2
    wide = Figure(value=1.0, low=low, high=high)
    change = change_of(compare(with_figures(ttft_p50_s=wide), with_figures(ttft_p50_s=wide)), "ttft_p50_s")
    apart = math.hypot(math.log(1.2), math.log(1.2))
    assert change.high == pytest.approx(math.expm1(apart))
    assert change.low == pytest.approx(math.expm1(-apart))


def test_more_figures_need_wider_intervals() -> None:
    wide = Figure(value=1.0, low=1 / 1.2, high=1.2)
    names = [f"ttft_p{p}_s" for p in (50, 95)] + [f"e2e_p{p}_s" for p in (50, 95)]
    run = with_figures(**dict.fromkeys(names, wide))
    change = change_of(compare(run, run), "ttft_p50_s")
    widening = NormalDist().inv_cdf(1 - 0.025 / 4) / NormalDist().inv_cdf(0.975)
    assert change.high == pytest.approx(math.expm1(widening * math.hypot(math.log(1.2), math.log(1.2))))


@pytest.mark.parametrize(
    ("name", "value", "half", "answer", "exit_code"),
    [
        ("ttft_p50_s", 1.04, 0.0, "same", 0),  # sure, and within the tolerance
        ("ttft_p50_s", 1.10, 0.01, "worse", 1),
        ("ttft_p50_s", 0.90, 0.01, "better", 0),
        ("ttft_p50_s", 1.10, 0.20, "unknown", 4),
        ("ttft_p50_s", 0.90, 0.20, "same", 0),  # a gain that may be noise is none
        ("output_tokens_per_s", 0.90, 0.01, "worse", 1),
        ("output_tokens_per_s", 1.10, 0.01, "better", 0),
        ("output_tokens_per_s", 0.90, 0.20, "unknown", 4),
    ],
)
def test_a_fall_is_beyond_the_tolerance_and_beyond_noise(
    name: str, value: float, half: float, answer: str, exit_code: int
) -> None:
    found = compare(with_figures(**{name: figure(1.0, 0.01)}), with_figures(**{name: figure(value, half)}))
    assert (change_of(found, name).answer, found.exit_code) == (answer, exit_code)


def test_a_rare_quantile_without_an_end_is_left_out_and_a_common_one_is_not() -> None:
    open_end = Figure(value=2.0, low=1.0, high=None)
    old = with_figures(ttft_p99_s=figure(1.0), ttft_p95_s=figure(1.0))
    found = compare(
        old, with_figures(ttft_p99_s=open_end, ttft_p95_s=dataclasses.replace(open_end, low=None))
    )
    assert [change.name for change in found.changes] == ["n_safe", "n_max", "ttft_p95_s"]
    assert found.answer == "unknown"


def test_one_sure_fall_outweighs_what_cannot_be_told() -> None:
    old = with_figures(ttft_p50_s=figure(1.0), e2e_p50_s=figure(1.0))
    found = compare(old, with_figures(ttft_p50_s=figure(1.1, 0.5), e2e_p50_s=figure(1.1)))
    assert found.exit_code == 1
    assert "E2E p50 at 20 users rose by 10.0%" in comparison_text(found)


def test_same_says_how_much_worse_it_could_be() -> None:
    run = with_figures(ttft_p50_s=Figure(value=1.0, low=0.9, high=1.3))  # exp(hypot(ln 1.3, ln 0.9))
    assert "Noise leaves room for TTFT p50 at 20 users to be 32.7% worse" in comparison_text(
        compare(run, run)
    )


@given(st.floats(0.1, 10), st.floats(0.1, 10), st.floats(0, 0.09), st.floats(0, 0.09))
def test_the_interval_holds_the_ratio_and_turning_the_runs_round_turns_it_round(
    old: float, new: float, old_half: float, new_half: float
) -> None:
    a, b = with_figures(ttft_p50_s=figure(old, old_half)), with_figures(ttft_p50_s=figure(new, new_half))
    there, back = (change_of(compare(*pair), "ttft_p50_s") for pair in ((a, b), (b, a)))
    assert there.low is not None
    assert there.high is not None
    assert back.high is not None
    assert there.low <= there.ratio + 1e-12
    assert there.ratio <= there.high + 1e-12
    assert (1 + there.low) * (1 + back.high) == pytest.approx(1.0)


def test_equal_servers_are_told_apart_in_at_most_one_of_twenty_comparisons() -> None:
    rng = np.random.default_rng(2)
    runs = [_noisy(rng) for _ in range(51)]
    alarms = sum(compare(old, new, tolerance=0.0).answer == "worse" for old, new in pairwise(runs))
    assert alarms <= 6  # 2.5 of 50 at most, and what chance may add to that
    slower = [_noisy(rng, slower=1.3) for _ in range(10)]
    assert all(compare(runs[0], run).answer == "worse" for run in slower)


def _noisy(rng: np.random.Generator, slower: float = 1.0) -> Snapshot:
    """400 requests that take as long as chance will have it."""
    figures: dict[str, Figure] = {}
    for name, spread in (("ttft", 0.4), ("tpot", 0.05), ("e2e", 0.2)):
        values: Floats = slower * np.exp(spread * rng.standard_normal(400))
        for p in (50, 95):
            value = float(np.quantile(values, p / 100, method="inverted_cdf"))
            figures[f"{name}_p{p}_s"] = quantile_figure(value, values, p)
    return with_figures(**figures)


def test_requests_that_share_their_fate_count_for_less() -> None:
    rng = np.random.default_rng(4)
    alone = rng.standard_normal(800) + 10
    together = np.sort(alone)  # a server that becomes slower and slower
    narrow, wide = (quantile_figure(10.0, values, 50) for values in (alone, together))
    assert narrow.low is not None
    assert wide.low is None or wide.low < narrow.low


def test_a_scenario_is_compared_by_what_it_sends_not_by_where_it_lies() -> None:
    def run(file: str, values: list[int]) -> Snapshot:
        scenario = {**RUN.manifest.scenario, "dataset": {"file": file, "counted": values}, "name": file}
        manifest = dataclasses.replace(RUN.manifest, scenario=scenario)
        return snapshot(RUN.rows().requests, manifest, verdict_of(RUN))

    long = list(range(1000))
    here, there, other = run("/a/x.jsonl", long), run("/b/x.jsonl", long), run("/a/x.jsonl", long[1:])
    assert not [one for one in compare(here, there).differences if one.is_workload]
    (apart,) = (one for one in compare(here, other).differences if one.is_workload)
    assert apart.what == "scenario.dataset.counted"
    assert apart.old.startswith("1000 items, sha256 ")
    assert len(json.dumps(dataclasses.asdict(here))) < 10_000


def test_a_key_that_an_older_version_did_not_know_had_its_default() -> None:
    def known(**scenario: object) -> Snapshot:
        return dataclasses.replace(taken(), scenario=scenario)

    whole = dict(taken().scenario)
    limits = {key: value for key, value in whole["limits"].items() if key != "failures_max_ratio"}
    older = {key: value for key, value in {**whole, "limits": limits}.items() if key != "failure_pause_s"}
    assert compare(known(**older), known(**whole)).differences == ()
    (apart,) = compare(known(**older), known(**whole, shared_prefix={"tokens": 64})).differences
    assert (apart.what, apart.old) == ("scenario.shared_prefix", "not set")


def test_machines_get_no_number_that_json_does_not_have() -> None:
    nothing = dataclasses.replace(taken(), n_safe=figure(0), n_max=figure(0))
    body = comparison_dict(compare(nothing, taken()))
    assert json.loads(json.dumps(body, allow_nan=False))["changes"][0]["ratio"] is None


def test_an_even_flow_of_tokens_has_a_narrow_interval_and_a_failed_request_gives_none() -> None:
    def tokens_per_s(stage: FakeStage) -> Figure:
        (level,) = taken(FakeRun(stages=(stage,))).levels
        return level.figures["output_tokens_per_s"]

    even = tokens_per_s(FakeStage(users=20))  # an answer of 256 tokens each quarter of a second
    assert even.value == pytest.approx(1024)
    assert even.low == pytest.approx(1024, rel=0.01)
    assert even.high == pytest.approx(1024, rel=0.01)
    fewer = tokens_per_s(FakeStage(users=20, failing="http_5xx", failing_share=0.5))
    assert fewer.high is not None
    assert fewer.low is not None
    assert (fewer.low + fewer.high) / 2 == pytest.approx(fewer.value)
    assert fewer.high - fewer.low > 30  # not evenly any more
