"""Layers over pipeline stages, as vLLM's get_pp_indices deals them out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.pipeline import pipeline_stages
from estimator.spec import SpecError


@pytest.mark.parametrize(
    ("layers", "pp", "sizes"),
    [
        (36, 2, [18, 18]),
        (61, 2, [31, 30]),
        (5, 4, [1, 1, 2, 1]),  # neither the first nor the last stage takes the odd layer
        (6, 4, [1, 2, 2, 1]),
        (7, 4, [2, 2, 2, 1]),
        (3, 3, [1, 1, 1]),
    ],
)
def test_odd_layers_go_to_the_stages_before_the_last(layers: int, pp: int, sizes: list[int]) -> None:
    assert [len(stage) for stage in pipeline_stages(layers, pp)] == sizes


@given(layers=st.integers(1, 300), data=st.data())
def test_every_layer_is_on_one_stage_in_order_and_no_stage_is_two_larger(
    layers: int, data: st.DataObject
) -> None:
    stages = pipeline_stages(layers, data.draw(st.integers(1, layers)))
    assert [index for stage in stages for index in stage] == list(range(layers))
    assert max(map(len, stages)) - min(map(len, stages)) <= 1


@pytest.mark.parametrize("pp", [0, 4])
def test_a_stage_without_a_layer_is_refused(pp: int) -> None:
    with pytest.raises(SpecError, match=f"--pipeline-parallel-size {pp}"):
        pipeline_stages(3, pp)
