"""A straight line through memory against input length, and the published ChatGLM2-6B table."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.line_fit import fit_line
from estimator.spec import SpecError
from estimator.units import MIB

CHATGLM2_6B_TOKENS = range(100, 6000, 200)
CHATGLM2_6B_PEAK_MIB = (
    *(11981.630859375, 12013.05419921875, 12056.77099609375, 12104.171875, 12147.87890625, 12194.2587890625),
    *(12246.16259765625, 12283.880859375, 12326.7431640625, 12372.0830078125, 12418.00439453125),
    *(12463.4248046875, 12504.59521484375, 12553.66162109375, 12593.26708984375, 12638.40234375),
    *(12682.5390625, 12728.97021484375, 12790.80615234375, 12846.7744140625, 12894.125, 12944.5283203125),
    *(12990.2294921875, 13030.0068359375, 13080.41064453125, 13126.8134765625, 13173.08203125),
    *(13218.35302734375, 13265.4736328125, 13305.5966796875),
)
CHATGLM2_6B_KV_BYTES_PER_TOKEN = 28 * 2 * 128 * 2 * 2  # layers, KV groups, head_dim, K and V, fp16
CHATGLM2_6B_PARAMETERS = 6_243_584_000


def test_the_published_slope_of_0_228_is_the_line_through_the_first_and_the_last_point() -> None:
    ends = fit_line((100, 5900), (CHATGLM2_6B_PEAK_MIB[0], CHATGLM2_6B_PEAK_MIB[-1]))
    assert round(ends.slope_mib_per_token, 3) == 0.228
    assert ends.base_mib == pytest.approx(11_958.80, abs=0.01)


def test_least_squares_over_all_thirty_points_is_a_little_steeper() -> None:
    line = fit_line(CHATGLM2_6B_TOKENS, CHATGLM2_6B_PEAK_MIB)
    assert len(CHATGLM2_6B_PEAK_MIB) == 30
    assert line.slope_mib_per_token == pytest.approx(0.23207, abs=1e-5)
    assert line.base_mib == pytest.approx(11_936.32, abs=0.01)
    assert line.residual_mib == pytest.approx(9.75, abs=0.01)


def test_the_base_of_chatglm2_6b_is_its_fp16_weights_and_28_mib() -> None:
    line = fit_line(CHATGLM2_6B_TOKENS, CHATGLM2_6B_PEAK_MIB)
    assert line.base_mib - CHATGLM2_6B_PARAMETERS * 2 / MIB == pytest.approx(27.6, abs=0.1)


@pytest.mark.parametrize(
    ("points", "ratio"), [(slice(None), 8.49), (slice(None, None, 29), 8.35)], ids=["all", "ends"]
)
def test_a_token_of_peak_memory_costs_eight_times_its_kv_cache(points: slice, ratio: float) -> None:
    line = fit_line(CHATGLM2_6B_TOKENS[points], CHATGLM2_6B_PEAK_MIB[points])
    assert CHATGLM2_6B_KV_BYTES_PER_TOKEN == 28 * 1024
    slope_bytes = line.slope_mib_per_token * MIB
    assert slope_bytes / CHATGLM2_6B_KV_BYTES_PER_TOKEN == pytest.approx(ratio, abs=0.01)


def test_a_line_is_read_at_any_length() -> None:
    line = fit_line((0, 1000), (500, 750))
    assert line.memory_mib(2000) == pytest.approx(1000)


@given(
    base=st.integers(0, 200_000),
    slope=st.integers(0, 100),
    lengths=st.lists(st.integers(1, 200_000), min_size=2, max_size=30, unique=True),
)
def test_points_on_a_line_give_that_line_back(base: int, slope: int, lengths: list[int]) -> None:
    line = fit_line(lengths, [base + slope * tokens for tokens in lengths])
    assert line.slope_mib_per_token == pytest.approx(slope, abs=1e-4)
    assert line.memory_mib(lengths[0]) == pytest.approx(base + slope * lengths[0], rel=1e-6, abs=1e-3)
    assert line.residual_mib == pytest.approx(0, abs=1e-2)


@given(st.lists(st.floats(0, 1e5), min_size=3, max_size=30), st.floats(-0.1, 0.1), st.floats(-10, 10))
def test_no_other_line_misses_by_less(memory: list[float], turned: float, raised: float) -> None:
    lengths = range(len(memory))
    line = fit_line(lengths, memory)

    def squares(extra_slope: float, extra_base: float) -> float:
        return sum(
            (line.memory_mib(x) + extra_base + extra_slope * x - y) ** 2
            for x, y in zip(lengths, memory, strict=True)
        )

    assert squares(0, 0) <= squares(turned, raised) * (1 + 1e-9) + 1e-6
    assert line.residual_mib**2 * len(memory) == pytest.approx(squares(0, 0), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(
    ("lengths", "memory", "reason"),
    [
        ((100, 200), (1.0,), "one memory for each length"),
        ((), (), "two different input lengths"),
        ((100, 100), (1.0, 2.0), "two different input lengths"),
        ((100, 200), (1.0, float("nan")), "finite"),
    ],
)
def test_points_that_make_no_line_are_refused(
    lengths: tuple[int, ...], memory: tuple[float, ...], reason: str
) -> None:
    with pytest.raises(SpecError, match=reason):
        fit_line(lengths, memory)
