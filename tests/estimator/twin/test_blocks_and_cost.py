"""The paged pool hands out every block but the null block; a step costs what the roofline says."""

from __future__ import annotations

import pytest

from estimator.spec import SpecError
from estimator.twin.blocks import NULL_BLOCK, BlockPool
from estimator.twin.cost import StepCost, step_seconds

COST = StepCost(
    fixed_s=1.0, compute_s_per_token=0.01, weights_s=2.0, context_s_per_token=0.001, sequence_s=0.1
)


def test_the_null_block_is_never_handed_out() -> None:
    pool = BlockPool(8)
    assert NULL_BLOCK not in pool.allocate(7)
    assert pool.free_blocks == 0


def test_usage_is_vllms_one_minus_free_over_usable() -> None:
    pool = BlockPool(512)
    pool.allocate(506)
    assert pool.usage == pytest.approx(0.990215264187867)  # a page of a real vLLM with 506 of 511 held


def test_more_blocks_than_are_free_are_refused_and_nothing_is_taken() -> None:
    pool = BlockPool(4)
    with pytest.raises(ValueError, match="4 blocks asked for, 3 free"):
        pool.allocate(4)
    assert (pool.free_blocks, pool.used_blocks) == (3, 0)


def test_a_block_cannot_be_given_back_twice_nor_the_null_block_ever() -> None:
    pool = BlockPool(4)
    blocks = pool.allocate(1)
    pool.free(blocks)
    with pytest.raises(ValueError, match="is not in use"):
        pool.free(blocks)
    with pytest.raises(ValueError, match="block 0 is not in use"):
        pool.free([NULL_BLOCK])


def test_a_decode_step_is_bound_by_memory() -> None:
    assert step_seconds(COST, 0, 10, 500) == pytest.approx(1.0 + (2.0 + 0.5) + 1.0)


def test_a_large_prefill_is_bound_by_compute() -> None:
    assert step_seconds(COST, 1000, 0, 1000) == pytest.approx(1.0 + 10.0)


def test_a_cost_without_time_or_below_zero_is_refused() -> None:
    with pytest.raises(SpecError, match="a step must take time"):
        StepCost(fixed_s=0, compute_s_per_token=1, weights_s=0, context_s_per_token=1, sequence_s=1)
    with pytest.raises(SpecError, match=r"step_cost.sequence_s must be 0 or more seconds, got -1"):
        StepCost(fixed_s=1, compute_s_per_token=1, weights_s=0, context_s_per_token=1, sequence_s=-1)
