"""Exact answers, against scipy, published tables and simulation."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from loadtest.sequential import (
    Certificate,
    RatioTest,
    binomial_at_least,
    binomial_at_most,
    design_effect,
    lower_bound,
    mann_kendall,
    percentile_interval,
    requests_needed,
    settled_from,
    theil_sen,
    upper_bound,
    weigh,
    weigh_once,
)

EXACT = 1e-9
SEEDS = 150
CORRELATED = [(1, 1), (4, 4), (4, 20), (8, 8), (8, 40)]
"""Design effects, and how many consecutive requests share a fate."""


def clustered(rng: random.Random, n: int, effect: float, cluster: int, rate: float) -> list[bool]:
    shared = math.sqrt((effect - 1) / (cluster - 1)) if cluster > 1 else 0.0
    drawn: list[bool] = []
    while len(drawn) < n:
        fate = rng.random() < rate
        drawn += [fate if rng.random() < shared else rng.random() < rate for _ in range(cluster)]
    return drawn[:n]


@pytest.mark.parametrize(
    ("q", "confidence", "needed"),
    [
        (0.10, 0.95, [29, 46, 61, 76, 103, 167]),
        (0.05, 0.95, [59, 93, 124, 153, 208, 336]),
        (0.05, 0.99, [90, 130, 165, 198, 259, 398]),
        (0.01, 0.95, [299, 473, 628, 773, 1049, 1693]),
        (0.01, 0.99, [459, 662, 838, 1001, 1307, 2010]),
    ],
)
def test_the_requests_needed_are_those_of_the_exact_test(
    q: float, confidence: float, needed: list[int]
) -> None:
    assert [requests_needed(k, q=q, confidence=confidence) for k in (0, 1, 2, 3, 5, 10)] == needed


@given(n=st.integers(1, 3000), share=st.floats(0, 1), p=st.floats(0.0001, 0.9999))
def test_both_tails_are_those_of_scipy(n: int, share: float, p: float) -> None:
    k = round(share * n)
    assert binomial_at_most(k, n, p) == pytest.approx(stats.binom.cdf(k, n, p), abs=EXACT)
    assert binomial_at_least(k, n, p) == pytest.approx(stats.binom.sf(k - 1, n, p), abs=EXACT)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_the_tails_of_what_is_certain(p: float) -> None:
    for k in range(-1, 4):
        assert binomial_at_most(k, 3, p) == stats.binom.cdf(k, 3, p)
        assert binomial_at_least(k, 3, p) == stats.binom.sf(k - 1, 3, p)


@given(n=st.integers(1, 3000), share=st.floats(0, 1), confidence=st.sampled_from([0.9, 0.95, 0.99]))
def test_the_bounds_are_those_of_clopper_and_pearson(n: int, share: float, confidence: float) -> None:
    k = round(share * n)
    upper = stats.beta.ppf(confidence, k + 1, n - k) if k < n else 1.0
    lower = stats.beta.ppf(1 - confidence, k, n - k + 1) if k else 0.0
    assert upper_bound(k, n, confidence=confidence) == pytest.approx(upper, abs=EXACT)
    assert lower_bound(k, n, confidence=confidence) == pytest.approx(lower, abs=EXACT)


def test_one_clean_request_less_than_needed_proves_nothing() -> None:
    assert weigh([False] * 236, q=0.05).answer == "good"  # 59 x the default design effect 4
    short = weigh([False] * 235, q=0.05)
    assert (short.answer, short.more_needed) == ("unknown", 1)


def test_the_requests_said_to_be_needed_are_enough() -> None:
    some = [i in (50, 150) for i in range(200)]
    missing = weigh(some, q=0.05).more_needed
    assert weigh(some + [False] * missing, q=0.05).answer == "good"
    assert weigh(some + [False] * (missing - 1), q=0.05).answer == "unknown"


def test_many_violations_are_bad_and_some_are_unknown() -> None:
    spread = [i % 3 == 0 for i in range(600)]
    assert weigh(spread, q=0.05).answer == "bad"
    assert weigh([i % 20 == 0 for i in range(600)], q=0.05).answer == "unknown"


def test_one_violation_among_few_condemns_nobody() -> None:
    assert weigh([True], q=0.05).answer == "unknown"
    assert weigh([True, False, False], q=0.05).answer == "unknown"
    assert weigh([True] * 8, q=0.05).answer == "bad"


def test_nothing_is_known_from_nothing() -> None:
    assert weigh([], q=0.05).answer == "unknown"


def test_requests_that_fail_together_count_for_less() -> None:
    rng = random.Random(3)
    alone = [rng.random() < 0.2 for _ in range(2000)]
    together = [bad for _ in range(50) for bad in [rng.random() < 0.2] * 40]
    assert design_effect(alone, least=0.0) < 2
    assert design_effect(alone) == 4
    assert design_effect(together) > 10


@pytest.mark.parametrize(("effect", "cluster"), CORRELATED)
def test_the_design_effect_is_found_and_rather_too_high(effect: float, cluster: int) -> None:
    rng = random.Random(5)
    found = [design_effect(clustered(rng, 4000, effect, cluster, 0.2), least=0.0) for _ in range(20)]
    assert effect <= sum(found) / len(found) <= 2 * effect


@pytest.mark.parametrize(("effect", "cluster"), CORRELATED)
def test_a_server_at_the_limit_is_signed_in_at_most_five_percent_of_runs(effect: float, cluster: int) -> None:
    certificate = Certificate(q=0.05)
    signed = 0
    for seed in range(SEEDS):
        drawn = clustered(random.Random(seed), certificate.requests_at(2), effect, cluster, 0.05)
        answers = (certificate.look(i, drawn[: certificate.requests_at(i)]).answer for i in range(3))
        signed += next((a for a in answers if a != "unknown"), "unknown") == "good"
    assert binomial_at_least(signed, SEEDS, 0.05) > 0.01, f"{signed} of {SEEDS} were signed"


def test_a_certificate_is_never_given_below_its_number_of_requests() -> None:
    certificate = Certificate(q=0.05)
    enough = certificate.requests_at(0)
    assert certificate.look(0, bytes(enough)).answer == "good"
    assert certificate.look(0, bytes(enough - 8)).answer == "unknown"
    assert [certificate.requests_at(i) / enough for i in range(certificate.looks)] == [1, 2, 4]


def test_a_signature_by_one_look_spends_no_more_than_the_first_look_of_a_certificate() -> None:
    enough = 276  # 69 clean requests at 97%, times the design effect 4
    assert weigh_once(bytes(enough), q=0.05).answer == "good"
    short = weigh_once(bytes(enough - 1), q=0.05)
    assert (short.answer, short.more_needed, short.confidence) == ("unknown", 1, 0.95)


def test_the_looks_of_a_certificate_spend_no_more_doubt_than_there_is() -> None:
    for confidence in (0.9, 0.95, 0.99):
        certificate = Certificate(q=0.05, confidence=confidence)
        spent = sum(1 - certificate.look(i, b"").confidence for i in range(certificate.looks))
        assert spent < 1 - confidence


@pytest.mark.parametrize(("q", "clean", "truncation"), [(0.05, 37, 600), (0.01, 194, 3000)])
def test_a_level_without_a_violation_passes_soon(q: float, clean: int, truncation: int) -> None:
    test = RatioTest(q=q, design_effect=1.0)
    assert test.answer(clean + 1, 0) == "good"
    assert test.answer(clean - 1, 0) == "unknown"
    assert test.requests_max == truncation
    tempered = RatioTest(q=q, design_effect=4.0)
    assert tempered.answer(4 * clean - 4, 0) == "unknown"
    assert tempered.answer(4 * clean + 4, 0) == "good"


@given(n=st.integers(0, 500), share=st.floats(0, 1), q=st.floats(0.005, 0.5))
def test_the_score_is_the_ratio_of_the_two_likelihoods(n: int, share: float, q: float) -> None:
    k, high = round(share * n), min(2 * q, (1 + q) / 2)
    expected = stats.binom.logpmf(k, n, high) - stats.binom.logpmf(k, n, q / 2)
    assert RatioTest(q=q, design_effect=1.0).score(n, k) == pytest.approx(expected, rel=1e-9, abs=1e-7)


@pytest.mark.parametrize(("rate", "wrong"), [(0.025, "bad"), (0.1, "good")])
def test_the_sequential_test_errs_in_about_five_percent_of_levels(rate: float, wrong: str) -> None:
    rng, test, errors = random.Random(7), RatioTest(q=0.05, design_effect=1.0), 0
    for _ in range(600):
        n = k = 0
        while (answer := test.answer(n, k)) == "unknown":
            n, k = n + 1, k + (rng.random() < rate)
        errors += answer == wrong
    assert errors <= 0.07 * 600


@given(n=st.integers(1, 400), percentile=st.sampled_from([50, 90, 95, 99]))
def test_the_ranks_of_a_percentile_are_those_of_the_binomial(n: int, percentile: int) -> None:
    found = percentile_interval(range(1, n + 1), percentile)
    low = int(stats.binom.ppf(0.025, n, percentile / 100))
    high = int(stats.binom.ppf(0.975, n, percentile / 100)) + 1
    # scipy's are the first with more than 2.5%; a tie to the last digit may fall on either side
    assert found.low == pytest.approx(low, abs=0) or (found.low is None and low == 0)
    assert found.high == (high if high <= n else None)


def test_below_300_values_a_p99_has_no_upper_end() -> None:
    assert percentile_interval(range(200), 99).high is None
    assert percentile_interval(range(400), 99).high is not None
    assert percentile_interval(range(400), 99, design_effect=2.0).high is None
    assert percentile_interval([], 50).low is None


def test_a_percentile_lies_in_its_interval_in_95_percent_of_samples() -> None:
    rng, inside = random.Random(2), 0
    for _ in range(500):
        interval = percentile_interval([rng.random() for _ in range(300)], 95)
        assert interval.low is not None
        assert interval.high is not None
        inside += interval.low <= 0.95 <= interval.high
    assert inside >= 0.93 * 500


def test_a_start_up_is_left_out_and_a_series_that_moves_has_not_settled() -> None:
    rng = random.Random(4)
    noise = [rng.gauss(0, 1) for _ in range(200)]
    assert settled_from([x + max(0, 30 - i) for i, x in enumerate(noise)]) in range(20, 40)
    assert settled_from([x + 0.2 * i for i, x in enumerate(noise)]) is None
    assert settled_from(noise[:9]) is None


@given(st.lists(st.floats(-1e3, 1e3), min_size=20, max_size=120))
def test_the_settle_test_minimises_what_mser_says(values: list[float]) -> None:
    means = [sum(values[i : i + 5]) / 5 for i in range(0, len(values) - 4, 5)]

    def error(d: int) -> float:
        rest = means[d:]
        return sum((y - sum(rest) / len(rest)) ** 2 for y in rest) / len(rest) ** 2

    errors = [error(d) for d in range((len(means) + 1) // 2)]
    found = settled_from(values)
    if found is not None:
        assert errors[found // 5] == pytest.approx(min(errors), rel=1e-6, abs=1e-9)
    else:
        assert errors[-1] == pytest.approx(min(errors), rel=1e-6, abs=1e-9)


SERIES = st.lists(st.integers(-9, 9) | st.floats(-100, 100), min_size=4, max_size=40)


@given(SERIES)
def test_the_slope_and_its_interval_are_those_of_scipy(values: list[float]) -> None:
    x = list(range(len(values)))
    found, oracle = theil_sen(x, values), stats.theilslopes(values, x, alpha=0.95)
    assert found.slope == pytest.approx(oracle.slope, abs=EXACT)
    assert found.at_zero == pytest.approx(oracle.intercept, abs=EXACT)
    assert (found.low, found.high) == pytest.approx((oracle.low_slope, oracle.high_slope), abs=EXACT)


def test_a_slope_needs_two_different_x() -> None:
    with pytest.raises(ValueError, match="differ in x"):
        theil_sen([1, 1], [1, 2])


@given(SERIES.filter(lambda values: len(set(values)) > 1))
def test_the_trend_test_is_kendalls_with_the_correction_for_continuity(values: list[float]) -> None:
    found = mann_kendall(values)
    oracle = stats.kendalltau(range(len(values)), values, method="asymptotic")
    plain = 2 * stats.norm.sf(abs(found.score) / math.sqrt(found.variance))
    assert plain == pytest.approx(oracle.pvalue, abs=EXACT)
    corrected = 2 * stats.norm.sf(max(abs(found.score) - 1, 0) / math.sqrt(found.variance))
    assert found.p_value == pytest.approx(corrected, abs=EXACT)


def test_a_flat_line_has_no_trend_and_a_rising_one_has() -> None:
    assert mann_kendall([5.0] * 30).p_value == 1.0
    assert mann_kendall(list(range(30))).p_value < 1e-9
