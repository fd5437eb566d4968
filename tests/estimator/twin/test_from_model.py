"""The twin of a model has the estimator's own blocks, groups and flags; what it cannot run it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from estimator.capacity import predict
from estimator.catalog import find_model, read_gpu
from estimator.engine_spec import EngineSpec, SpeculativeSpec
from estimator.estimate import Estimate, estimate
from estimator.hf_config import read_model
from estimator.spec import SpecError, Workload
from estimator.twin.from_model import (
    cautions_of,
    cost_of_estimate,
    limits_of_estimate,
    profile_of_estimate,
)
from estimator.twin.lmdeploy_limits import LmdeployLimits
from estimator.twin.virtual import ClosedLoop, closed_loop
from estimator.weights.count import weights_on_rank

CHAT = Workload.constant(256, 256)


def answer_for(model: str, gpu: str, workload: Workload = CHAT, **flags: Any) -> Estimate:
    spec, card, engine = read_model(find_model(model)), read_gpu(gpu), EngineSpec(**flags)
    weights = weights_on_rank(spec, engine, None, compute_capability=card.compute_capability)
    return estimate(spec, card, engine, weights, workload)


@pytest.mark.parametrize(
    ("model", "gpu", "flags"),
    [
        ("tiny", "t4", {}),
        ("qwen2.5-7b", "a10", {}),
        ("gemma-3-27b", "h100", {}),
        ("qwen3.5-27b", "h100", {}),
        ("deepseek-v3", "h200", {"tp": 8, "dcp": 4}),
        ("llama-3.1-70b", "h100", {"tp": 2, "pp": 2}),
        ("qwen3-8b", "a100-80gb", {"engine": "lmdeploy"}),
    ],
)
def test_the_twin_of_a_model_fits_as_many_requests_as_the_estimate(
    model: str, gpu: str, flags: dict[str, Any]
) -> None:
    answer = answer_for(model, gpu, **flags)
    profile = profile_of_estimate(answer)
    again = predict(profile.pool, CHAT, max_model_len=profile.max_model_len, slots=profile.max_num_seqs)
    assert (again.n_guaranteed, again.n_slots) == (
        answer.prediction.n_guaranteed,
        answer.prediction.n_slots,
    )
    assert again.n_saturation == pytest.approx(answer.prediction.n_saturation)
    assert profile.limits.cache_groups == answer.budget.groups


def test_the_flags_reach_the_scheduler() -> None:
    answer = answer_for(
        "qwen2.5-7b", "a10", max_num_seqs=7, max_num_batched_tokens=512, max_model_len=1024, block_size=32
    )
    limits = profile_of_estimate(answer, scheduling_policy="priority", watermark=0.05).limits
    assert (limits.max_num_seqs, limits.max_num_batched_tokens, limits.max_model_len) == (7, 512, 1024)
    assert (limits.block_size, limits.policy, limits.watermark) == (32, "priority", 0.05)
    assert limits.enable_prefix_caching
    assert limits.steps_in_flight == 2
    one_step = answer_for("qwen2.5-7b", "a10", async_scheduling=False, enable_prefix_caching=False)
    assert profile_of_estimate(one_step).limits.steps_in_flight == 1
    assert not profile_of_estimate(one_step).limits.enable_prefix_caching


def test_speculation_takes_its_slots_ahead_in_the_twin_too() -> None:
    guess = SpeculativeSpec(method="mtp", num_speculative_tokens=3)
    limits = profile_of_estimate(answer_for("deepseek-v3", "h200", tp=8, speculative=guess)).limits
    assert limits.cache_groups[0].ahead_tokens >= 3


def test_a_model_with_sliding_windows_runs() -> None:
    profile = profile_of_estimate(answer_for("gemma-3-27b", "h100"))
    assert len(profile.groups) > 1
    loop = ClosedLoop(users=8, until_s=20.0, workload=Workload.constant(3000, 50), ramp_s=2.0)
    history = closed_loop(profile.limits, profile.step_cost, loop)
    assert len(history.requests) > 8
    assert history.preemptions == 0


def test_a_prefix_cache_over_blocks_of_several_sizes_is_left_out_and_said_so() -> None:
    answer = answer_for("deepseek-v4-flash", "h200", tp=4)
    assert len({group.block_size for group in answer.budget.groups}) > 1
    assert not profile_of_estimate(answer).enable_prefix_caching
    assert "prefix caching" in cautions_of(answer)[0]


def test_stages_of_a_pipeline_that_work_one_after_another_are_cautioned() -> None:
    assert "stages of a pipeline" in cautions_of(answer_for("llama-3.1-70b", "h100", pp=4))[0]


def test_what_the_twin_does_not_miss_is_not_cautioned() -> None:
    assert cautions_of(answer_for("qwen2.5-7b", "a10")) == ()
    uncached = answer_for("deepseek-v4-flash", "h200", tp=4, enable_prefix_caching=False)
    assert cautions_of(uncached) == ()


def test_a_cache_the_scheduler_does_not_model_is_refused_in_one_sentence() -> None:
    answer = answer_for("gemma-3-27b", "h100", engine="lmdeploy", backend="pytorch", max_model_len=8192)
    with pytest.raises(SpecError, match="the twin does not model LMDeploy's"):
        limits_of_estimate(answer)


def test_lmdeploy_is_run_by_its_own_scheduler_which_has_no_policy() -> None:
    answer = answer_for("qwen3-8b", "a100-80gb", engine="lmdeploy", max_num_seqs=9)
    limits = limits_of_estimate(answer)
    assert isinstance(limits, LmdeployLimits)
    assert (limits.backend, limits.max_batch_size) == ("turbomind", 9)
    assert limits.usable_blocks == answer.pool.usable_blocks
    with pytest.raises(SpecError, match="--scheduling-policy and --watermark are vLLM's"):
        limits_of_estimate(answer, watermark=0.1)


def test_a_pool_too_small_for_one_longest_request_is_refused() -> None:
    answer = answer_for("qwen2.5-7b", "a10", num_gpu_blocks_override=100)
    with pytest.raises(SpecError, match=r"max_model_len \d+ needs \d+ blocks and the cache has 99"):
        profile_of_estimate(answer)


def test_the_prior_follows_the_data_sheet() -> None:
    a10, h100 = (cost_of_estimate(answer_for("qwen2.5-7b", gpu)) for gpu in ("a10", "h100"))
    assert a10.step.weights_s == pytest.approx(15.23e9 / (600e9 * 0.75), rel=0.01)
    assert a10.step.context_s_per_token == pytest.approx(57344 / (600e9 * 0.75))
    assert h100.step.compute_s_per_token < a10.step.compute_s_per_token
    assert (a10.low_factor, a10.high_factor) == (0.6, 2.0)
    assert "a10-24gb" in a10.source
    assert "prior" in a10.source


def test_a_sliding_window_is_read_whole_however_long_the_sequence() -> None:
    answer = answer_for("gemma-3-27b", "h100")
    short, long = (cost_of_estimate(answer, tokens).step.context_s_per_token for tokens in (512, 8192))
    assert short > 3 * long


def test_more_gpus_share_the_weights_and_pay_for_talking() -> None:
    one, four = (cost_of_estimate(answer_for("qwen2.5-7b", "h100", tp=tp)).step for tp in (1, 4))
    assert four.weights_s < one.weights_s / 3
    assert four.fixed_s > one.fixed_s


def test_lmdeploy_has_no_null_block_to_lose() -> None:
    answer = answer_for("qwen3-8b", "a100-80gb", engine="lmdeploy")
    profile = profile_of_estimate(answer)
    assert profile.pool.usable_blocks == answer.pool.usable_blocks
    assert not profile.enable_prefix_caching
    assert profile.block_size == 64


def test_a_flag_can_be_changed_afterwards() -> None:
    profile = profile_of_estimate(answer_for("qwen2.5-7b", "a10"))
    assert replace(profile, max_num_seqs=3).limits.max_num_seqs == 3


def test_a_pair_of_tokens_costs_four_operations_an_element_of_the_query() -> None:
    """Llama-3.1-8B: 32 layers of 4,096 elements; an H100 at half of its dense bf16 FLOP/s."""
    answer = answer_for("llama-3.1-8b", "h100")
    flops = answer.gpu.dense_bf16_flops_per_s * 0.5
    assert cost_of_estimate(answer).step.attention_s_per_pair == pytest.approx(4 * 32 * 4096 / flops)


def test_windows_do_not_make_prompts_cost_their_square() -> None:
    """Gemma-3-27B: 10 of 62 layers see every token."""
    answer = answer_for("gemma-3-27b", "h100")
    flops = answer.gpu.dense_bf16_flops_per_s * 0.5
    assert cost_of_estimate(answer).step.attention_s_per_pair == pytest.approx(4 * 10 * 4096 / flops)
