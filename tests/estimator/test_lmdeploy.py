"""TurboMind's arithmetic, from its source."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.catalog import find_model, read_gpu
from estimator.estimate import estimate
from estimator.hf_config import read_model
from estimator.lmdeploy import slab_of
from estimator.spec import EngineSpec
from estimator.units import GIB, MIB
from estimator.weights import weights_on_rank

QWEN3_8B = read_model(find_model("Qwen3-8B"))


def test_qwen3_8b_has_7_blocks_of_9_mib_in_a_slab_of_64_mib() -> None:
    slab = slab_of(9 * MIB)
    assert (slab.size_bytes, slab.blocks) == (64 * MIB, 7)


@given(st.integers(1, 512 * MIB))
def test_a_slab_is_a_power_of_two_that_blocks_fill_or_the_largest(block_bytes: int) -> None:
    slab = slab_of(block_bytes)
    assert slab.size_bytes & (slab.size_bytes - 1) == 0
    assert 32 * MIB <= slab.size_bytes <= GIB
    assert slab.blocks * block_bytes <= slab.size_bytes
    assert slab.blocks * block_bytes >= 0.95 * slab.size_bytes or slab.size_bytes == GIB


@pytest.mark.parametrize(("kv_cache_dtype", "head_bytes"), [("auto", 256), ("int8", 132), ("int4", 68)])
def test_a_block_of_64_tokens_costs_k_and_v_with_their_scales(kv_cache_dtype: str, head_bytes: int) -> None:
    engine = EngineSpec(engine="lmdeploy", kv_cache_dtype=kv_cache_dtype)
    budget = estimate(QWEN3_8B, read_gpu("h100-80gb"), engine, weights_on_rank(QWEN3_8B, 1)).budget
    assert budget.bytes_per_block == 36 * 2 * 8 * 64 * head_bytes


@pytest.mark.parametrize(
    ("gpu", "slots"), [("h100-80gb", 1024), ("h200-141gb", 1024), ("a100-80gb", 384), ("l40s-48gb", 128)]
)
def test_the_batch_size_follows_the_gpu(gpu: str, slots: int) -> None:
    engine = EngineSpec(engine="lmdeploy")
    answer = estimate(QWEN3_8B, read_gpu(gpu), engine, weights_on_rank(QWEN3_8B, 1))
    assert answer.prediction.n_slots == slots


def test_every_answer_says_it_was_never_executed() -> None:
    engine = EngineSpec(engine="lmdeploy")
    answer = estimate(QWEN3_8B, read_gpu("h100-80gb"), engine, weights_on_rank(QWEN3_8B, 1))
    assert any("not verified by execution" in caution for caution in answer.budget.cautions)
    assert answer.headline is None
