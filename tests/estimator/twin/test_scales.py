"""A cost that is known in shape, fitted to the levels of a load and carried over to another server."""

from __future__ import annotations

from dataclasses import replace

import pytest

from estimator.spec import SpecError
from estimator.twin.cost import ServerCost, StepCost, scaled
from estimator.twin.scales import LevelSeen, carried_over, fit_to_levels, mean_step_s

PRIOR = StepCost(
    fixed_s=0.002, compute_s_per_token=1e-4, weights_s=0.02, context_s_per_token=1e-7, sequence_s=1e-4
)


def level(running: float, cost: StepCost) -> LevelSeen:
    """What a server of this cost shows at so many: 200 tokens in, 100 out, a closed loop."""
    step_s = 0.02
    for _ in range(200):  # the rate follows from the step, and the step from the rate
        seen = LevelSeen(
            running=running,
            prompt_tokens=200.0,
            context_tokens=250.0,
            requests_per_s=running / (101 * step_s),
            step_s=step_s,
        )
        step_s = mean_step_s(cost, seen)
    return replace(seen, step_s=mean_step_s(cost, seen))


def test_two_levels_apart_tell_what_every_step_pays_from_what_grows() -> None:
    truth = StepCost(
        fixed_s=0.001, compute_s_per_token=3e-4, weights_s=0.01, context_s_per_token=3e-7, sequence_s=3e-4
    )
    found = fit_to_levels(ServerCost(step=PRIOR), [level(4, truth), level(40, truth)], "run")
    assert found.step.weights_s == pytest.approx(0.01, rel=0.02)
    assert found.step.compute_s_per_token == pytest.approx(3e-4, rel=0.02)
    assert found.step.sequence_s == pytest.approx(3e-4, rel=0.02)
    assert found.high_factor == pytest.approx(1.0, abs=0.01)
    assert found.source == "run"


@pytest.mark.parametrize("batches", [(8,), (8, 10)])
def test_levels_alike_scale_all_terms_by_one_factor(batches: tuple[int, ...]) -> None:
    truth = scaled(PRIOR, 1.7)
    found = fit_to_levels(ServerCost(step=PRIOR), [level(n, truth) for n in batches], "run")
    for name in ("fixed_s", "weights_s", "compute_s_per_token", "sequence_s"):
        assert getattr(found.step, name) == pytest.approx(getattr(truth, name), rel=1e-3)


def test_levels_that_do_not_agree_widen_the_range() -> None:
    slow = replace(level(8, PRIOR), step_s=level(8, PRIOR).step_s * 1.5)
    found = fit_to_levels(ServerCost(step=PRIOR), [level(8, PRIOR), slow], "run")
    assert found.low_factor < 0.9
    assert found.high_factor > 1.1


def test_without_a_level_nothing_is_said() -> None:
    with pytest.raises(SpecError, match="what a step costs is not known"):
        fit_to_levels(ServerCost(step=PRIOR), [], "run")


def test_another_server_changes_each_term_as_the_data_sheets_do() -> None:
    known = ServerCost(step=scaled(PRIOR, 2.0), source="run")
    there = replace(PRIOR, weights_s=0.01, compute_s_per_token=2.5e-5, fixed_s=0.003)
    found = carried_over(known, ServerCost(step=PRIOR), ServerCost(step=there))
    assert found.step.weights_s == pytest.approx(0.02)
    assert found.step.compute_s_per_token == pytest.approx(5e-5)
    assert found.step.fixed_s == pytest.approx(0.006)
    assert found.step.sequence_s == pytest.approx(2e-4)  # the host's, whatever the GPU


def test_a_term_the_known_server_has_not_is_the_other_ones_own() -> None:
    found = carried_over(
        ServerCost(step=PRIOR),
        ServerCost(step=PRIOR),
        ServerCost(step=replace(PRIOR, attention_s_per_pair=1e-9)),
    )
    assert found.step.attention_s_per_pair == pytest.approx(1e-9)
