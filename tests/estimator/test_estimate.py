"""The ledger and its answer: laws that hold for any model, and the rules vLLM starts by."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.catalog import find_model, read_gpu
from estimator.engine_spec import EngineSpec
from estimator.estimate import Estimate, estimate
from estimator.hf_config import read_model
from estimator.memory import KV_CACHE, Line, settle
from estimator.model import ModelSpec
from estimator.spec import GpuSpec, Interval, SpecError, Workload
from estimator.units import GIB, MIB, ceil_div
from estimator.vllm_cache.defaults import limits
from estimator.weights.count import weights_on_rank

QWEN3_8B = read_model(find_model("Qwen3-8B"))
QWEN3_32B = read_model(find_model("Qwen3-32B"))
H100 = read_gpu("h100-80gb")
L4 = read_gpu("l4-24gb")


CHAT = Workload.constant(1000, 300)


def answer(
    model: ModelSpec = QWEN3_8B, gpu: GpuSpec = H100, workload: Workload | None = CHAT, **flags: Any
) -> Estimate:
    engine = EngineSpec(**flags)
    return estimate(model, gpu, engine, weights_on_rank(model, engine), workload)


def block_bytes(model: ModelSpec, **flags: Any) -> int:
    [size] = answer(model, gpu_of(300 * GIB), **flags).budget.bytes_per_block
    return size


def gpu_of(memory_bytes: int) -> GpuSpec:
    return replace(H100, memory_total_bytes=memory_bytes)


MEMORY = st.integers(45 * GIB, 300 * GIB)
ENGINE = st.sampled_from(["vllm", "lmdeploy"])


@given(ENGINE, MEMORY, st.sampled_from([1, 2, 4, 8]), st.floats(0.6, 0.99))
def test_the_ledger_sums_to_the_total_to_the_byte(engine: str, memory: int, tp: int, share: float) -> None:
    ledger = answer(gpu=gpu_of(memory), engine=engine, tp=tp, gpu_memory_utilization=share).budget.ledger
    assert sum(line.size_bytes.likely for line in ledger.lines) == ledger.total_bytes == memory
    assert all(isinstance(line.size_bytes.likely, int) for line in ledger.lines)


@given(ENGINE, MEMORY, st.integers(0, 40 * GIB))
def test_more_vram_never_predicts_fewer(engine: str, memory: int, more: int) -> None:
    # Across 70 and 160 GiB vLLM's own batch defaults change, so they are fixed here.
    flags = {"engine": engine, "max_num_batched_tokens": 4096, "max_num_seqs": 64}
    small, large = answer(gpu=gpu_of(memory), **flags), answer(gpu=gpu_of(memory + more), **flags)
    assert large.pool.blocks >= small.pool.blocks
    assert large.n_guaranteed.low >= small.n_guaranteed.low
    assert large.n_guaranteed.likely >= small.n_guaranteed.likely


@given(st.sampled_from([(1, 2), (2, 4), (4, 8), (8, 16)]), st.sampled_from([QWEN3_8B, QWEN3_32B]))
def test_higher_tp_never_means_fewer_blocks_or_more_weights(tps: tuple[int, int], model: ModelSpec) -> None:
    fewer, more = (answer(model, gpu_of(100 * GIB), tp=tp) for tp in tps)
    assert more.budget.bytes_per_block <= fewer.budget.bytes_per_block
    assert weights_of(more) < weights_of(fewer)
    assert more.pool.blocks >= fewer.pool.blocks


def weights_of(given_answer: Estimate) -> float:
    return given_answer.budget.ledger.line("weights").size_bytes.likely


@given(ENGINE, MEMORY, st.integers(1, 20_000), st.integers(1, 20_000))
def test_the_definitions_keep_their_order(engine: str, memory: int, prompt: int, output: int) -> None:
    given_answer = estimate(
        QWEN3_8B,
        gpu_of(memory),
        EngineSpec(engine=engine),
        weights_on_rank(QWEN3_8B, EngineSpec()),
        Workload.constant(prompt, output),
    )
    guaranteed, saturation = given_answer.n_guaranteed, given_answer.n_saturation
    sustained = given_answer.n_sustained
    assert guaranteed.likely <= sustained.likely <= max(guaranteed.likely, saturation.likely)
    assert guaranteed.low <= guaranteed.likely <= guaranteed.high
    assert guaranteed.likely <= saturation.likely
    assert guaranteed.likely == given_answer.prediction.n_guaranteed
    assert saturation.likely == given_answer.prediction.n_saturation


@given(st.lists(st.tuples(st.integers(0, GIB), st.integers(0, GIB), st.integers(0, GIB)), max_size=6))
def test_what_the_claims_leave_mirrors_their_range(sizes: list[tuple[int, int, int]]) -> None:
    claims = [
        Line(name=str(i), size_bytes=Interval(low=low, likely=likely, high=high), source="")
        for i, (low, likely, high) in enumerate(map(sorted, sizes))
    ]
    rest = settle(8 * GIB, claims, KV_CACHE, "").kv_bytes
    assert rest.high - rest.low == sum(line.size_bytes.high - line.size_bytes.low for line in claims)


def test_vllm_rounds_what_it_asks_for_up_to_a_byte() -> None:
    ledger = answer(gpu=gpu_of(80 * GIB + 1), gpu_memory_utilization=0.9).budget.ledger
    assert ledger.line("not asked for").size_bytes == Interval.exact(80 * GIB + 1 - 77_309_411_329)


def test_the_context_is_not_subtracted_twice() -> None:
    names = [line.name for line in answer().budget.ledger.lines]
    assert names == [
        "not asked for",
        "weights",
        "buffers",
        "activation peak",
        "CUDA graphs",
        "outside PyTorch",
        KV_CACHE,
    ]


def test_kv_cache_memory_bytes_is_taken_exactly_and_utilisation_ignored() -> None:
    fixed = answer(kv_cache_memory_bytes=20 * GIB, gpu_memory_utilization=0.5)
    assert fixed.budget.ledger.kv_bytes == Interval.exact(20 * GIB)
    assert fixed.budget.blocks == Interval.exact(9102)
    assert fixed.n_guaranteed.is_exact


def test_num_gpu_blocks_override_is_the_pool() -> None:
    fixed = answer(num_gpu_blocks_override=5000)
    assert (fixed.pool.blocks, fixed.pool.usable_blocks, fixed.pool.source) == (5000, 4999, "flags")
    assert fixed.budget.ledger.kv_bytes.likely == 5000 * 16 * 144 * 1024


def test_eager_mode_gives_the_graphs_memory_to_the_cache() -> None:
    eager, graphs = answer(enforce_eager=True), answer()
    freed = graphs.budget.ledger.line("CUDA graphs").size_bytes.likely
    assert eager.budget.ledger.kv_bytes.likely - graphs.budget.ledger.kv_bytes.likely == freed


@pytest.mark.parametrize(
    ("flags", "batch"),
    [
        ({}, (1024, 8192)),
        ({"max_num_batched_tokens": 512}, (512, 512)),
        ({"max_num_seqs": 4, "max_model_len": 1024}, (4, 4096)),
        ({"max_num_seqs": 2000}, (2000, 8192)),
    ],
)
def test_batch_defaults_bound_each_other_as_in_vllm(flags: dict[str, int], batch: tuple[int, int]) -> None:
    resolved = limits(QWEN3_8B, H100, EngineSpec(**flags))
    assert (resolved.max_num_seqs, resolved.max_num_batched_tokens) == batch


@pytest.mark.parametrize(
    ("gpu", "batch"),
    [
        ("h100-80gb", (1024, 8192)),
        ("h200-141gb", (1024, 8192)),
        ("b200-180gb", (1024, 16384)),
        ("a100-80gb", (256, 2048)),
        ("l4-24gb", (256, 2048)),
    ],
)
def test_batch_defaults_follow_the_gpu(gpu: str, batch: tuple[int, int]) -> None:
    resolved = limits(QWEN3_8B, read_gpu(gpu), EngineSpec())
    assert (resolved.max_num_seqs, resolved.max_num_batched_tokens) == batch


def test_vllm_needs_one_whole_request_beside_the_null_block() -> None:
    needed = ceil_div(8192, 16) + 1
    assert answer(num_gpu_blocks_override=needed, max_model_len=8192).n_guaranteed.likely >= 1
    refused = answer(num_gpu_blocks_override=needed - 1, max_model_len=8192).budget.cautions[0]
    assert refused.startswith("vLLM would not start: one request of max_model_len 8192")
    assert refused.endswith("use --max-model-len 8176 or less, or raise --tp")


def test_where_flags_fix_the_cache_what_does_not_fit_is_answered_with_a_caution() -> None:
    fixed = answer(kv_cache_memory_bytes=70 * GIB)
    assert "does not fit on h100-80gb" in fixed.budget.cautions[0]
    assert fixed.pool.blocks == 70 * GIB // (16 * 147_456)
    assert fixed.budget.ledger.lines[-1].size_bytes.likely < 0


def test_the_length_the_error_names_does_start() -> None:
    with pytest.raises(SpecError, match=r"use --max-model-len (\d+) or less") as refusal:
        answer(QWEN3_32B)
    fits = int(str(refusal.value).split("--max-model-len ")[1].split()[0])
    assert answer(QWEN3_32B, max_model_len=fits).pool.usable_blocks == ceil_div(fits, 16)


def test_a_start_that_hangs_on_the_priors_is_a_caution_and_a_low_end_of_nothing() -> None:
    tight = answer(QWEN3_32B, max_model_len=38_560)
    assert any("at the low end of the range vLLM does not start" in text for text in tight.budget.cautions)
    assert tight.n_guaranteed.low < tight.n_guaranteed.likely


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"max_model_len": 50_000}, "--max-model-len 50000 is above the 40960 tokens"),
        ({"max_num_seqs": 64, "max_num_batched_tokens": 32}, "--max-num-batched-tokens 32 is below"),
        ({"block_size": 20}, "--block-size 20 is not a multiple of the 16 tokens"),
        ({"kv_cache_dtype": "fp7"}, "--kv-cache-dtype 'fp7' is not known"),
        ({"tp": 3}, "--tp 3 does not divide"),
        ({"kv_cache_memory_bytes": MIB}, "no request fits"),
        ({"gpu_memory_utilization": 0.05}, "does not fit on h100-80gb"),
        ({"gpu_memory_utilization": 0.24}, "vLLM would not start"),
        ({"engine": "lmdeploy", "num_gpu_blocks_override": 5}, "no --num-gpu-blocks-override"),
        ({"engine": "lmdeploy", "kv_cache_dtype": "fp8"}, "fp8 with LMDeploy"),
        ({"engine": "lmdeploy", "gpu_memory_utilization": 1e-6}, "leave no room for the KV cache"),
    ],
)
def test_a_flag_the_engine_would_refuse_is_one_sentence(flags: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SpecError, match=sentence) as error:
        answer(**flags)
    assert "\n" not in str(error.value)


def test_a_model_larger_than_the_gpu_says_by_how_much() -> None:
    with pytest.raises(SpecError, match=r"does not fit on l4-24gb: .* raise --tp or take a larger GPU"):
        answer(QWEN3_32B, L4)


def test_without_a_workload_every_request_fills_max_model_len() -> None:
    filled = answer(max_model_len=8192, workload=None)
    assert filled.prediction.held.longest_blocks == 512
    assert filled.headline is not None
    assert filled.headline.max_concurrency == filled.pool.blocks / 512


def test_a_workload_longer_than_the_model_is_refused() -> None:
    with pytest.raises(SpecError, match="exceeds max_model_len 1024"):
        answer(max_model_len=1024)


@given(st.integers(1, 64), st.sampled_from(["int8_per_token_head", "fp8", "auto"]))
def test_a_token_costs_the_same_in_every_block_size(blocks: int, kv_cache_dtype: str) -> None:
    small = block_bytes(QWEN3_8B, kv_cache_dtype=kv_cache_dtype, block_size=16)
    assert block_bytes(QWEN3_8B, kv_cache_dtype=kv_cache_dtype, block_size=16 * blocks) == blocks * small
