"""LMDeploy's arithmetic: figures worked by hand from its source, and laws that hold for both engines."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.catalog import read_gpu
from estimator.engine_spec import EngineSpec, SpeculativeSpec
from estimator.lmdeploy import turbomind
from estimator.lmdeploy.budget import kv_budget
from estimator.lmdeploy.pytorch_engine import reserve, state_slot_bytes
from estimator.lmdeploy.turbomind import slab_of
from estimator.memory import KV_CACHE, EngineLimits, KvBudget
from estimator.model import (
    Attention,
    Cache,
    IndexerKeys,
    LatentAttention,
    Layer,
    ModelSpec,
    Quantisation,
    RecurrentState,
)
from estimator.spec import SpecError, UnsupportedModel
from estimator.units import GIB, MIB
from estimator.weights.count import Weights

A100 = read_gpu("a100-80gb")
H100 = read_gpu("h100-80gb")
WEIGHTS = Weights(size_bytes=16_381_470_720, source="given")
GQA = Attention(kv_heads=8, head_size=128, head_size_v=128)
MLA = LatentAttention(latent_size=512, rope_size=64)
GDN = RecurrentState(mixer="gdn", heads=32, head_size=128, groups=16, state_size=128, conv_kernel=4)


def model_of(*layers: tuple[int, Cache | tuple[Cache, ...]], **fields: Any) -> ModelSpec:
    """Qwen3-8B but for its layers: (how many, what each caches)."""
    known: dict[str, Any] = {
        "name": "model",
        "architecture": "Qwen3ForCausalLM",
        "model_type": "qwen3",
        "dtype": "bfloat16",
        "quantisation": None,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "vocab_size": 151_936,
        "attention_heads": 32,
        "context_tokens_max": 40_960,
        "tie_word_embeddings": False,
    }
    made = tuple(
        Layer(caches=caches if isinstance(caches, tuple) else (caches,))
        for count, caches in layers
        for _ in range(count)
    )
    return ModelSpec(**{**known, "layers": made, **fields})


QWEN3_8B = model_of((36, GQA))
DEEPSEEK = model_of((27, MLA), architecture="DeepseekV2ForCausalLM")
QWEN3_5 = model_of((24, GDN), (8, GQA), architecture="Qwen3_5ForConditionalGeneration")
BACKENDS = st.sampled_from(["turbomind", "pytorch"])


def budget(
    model: ModelSpec = QWEN3_8B, gpu: Any = A100, weights: Weights = WEIGHTS, **flags: Any
) -> KvBudget:
    return kv_budget(model, gpu, EngineSpec(engine="lmdeploy", **flags), weights)


def per_block(model: ModelSpec = QWEN3_8B, **flags: Any) -> int:
    [size] = budget(model, **flags).bytes_per_block
    return size


# Both engines


@given(BACKENDS, st.integers(40 * GIB, 300 * GIB), st.sampled_from([1, 2, 4, 8]), st.floats(0.3, 0.99))
def test_the_ledger_sums_to_the_total_to_the_byte(backend: str, memory: int, tp: int, share: float) -> None:
    gpu = replace(A100, memory_total_bytes=memory)
    answer = budget(gpu=gpu, backend=backend, tp=tp, gpu_memory_utilization=share)
    assert sum(line.size_bytes.likely for line in answer.ledger.lines) == memory
    assert answer.blocks.low <= answer.blocks.likely <= answer.blocks.high
    [block_bytes] = answer.bytes_per_block
    assert answer.blocks.likely * block_bytes <= answer.ledger.kv_bytes.likely


@given(st.integers(40 * GIB, 200 * GIB), st.integers(0, 100 * GIB))
def test_more_vram_never_gives_turbomind_fewer_blocks(memory: int, more: int) -> None:
    small, large = (replace(A100, memory_total_bytes=size) for size in (memory, memory + more))
    assert budget(gpu=small).blocks.likely <= budget(gpu=large).blocks.likely


@pytest.mark.parametrize("backend", ["turbomind", "pytorch"])
@pytest.mark.parametrize(
    ("gpu", "slots"), [("h100-80gb", 1024), ("h200-141gb", 1024), ("a100-80gb", 384), ("l40s-48gb", 128)]
)
def test_the_batch_size_follows_the_gpu(backend: str, gpu: str, slots: int) -> None:
    answer = budget(gpu=read_gpu(gpu), backend=backend)
    assert answer.limits.max_num_seqs == slots
    assert (answer.limits.block_size, answer.limits.max_num_batched_tokens) == (64, 8192)


@pytest.mark.parametrize("backend", ["turbomind", "pytorch"])
def test_every_answer_says_it_was_never_executed(backend: str) -> None:
    answer = budget(backend=backend)
    assert any("not verified by execution" in caution for caution in answer.cautions)
    assert answer.headline is None


@pytest.mark.parametrize("backend", ["turbomind", "pytorch"])
@pytest.mark.parametrize(
    ("flags", "head_bytes", "words"),
    [
        ({}, 256, "bfloat16"),
        ({"quant_policy": 8}, 132, "int8 and scales"),
        ({"quant_policy": 4}, 68, "int4 and scales"),
        ({"kv_cache_dtype": "int8"}, 132, "int8 and scales"),
        ({"kv_cache_dtype": "int4", "quant_policy": 4}, 68, "int4 and scales"),
    ],
)
def test_a_block_of_64_tokens_costs_k_and_v_with_their_scales(
    backend: str, flags: dict[str, Any], head_bytes: int, words: str
) -> None:
    assert per_block(backend=backend, **flags) == 36 * 2 * 8 * 64 * head_bytes
    assert budget(backend=backend, **flags).stored_as == words


@pytest.mark.parametrize("backend", ["turbomind", "pytorch"])
def test_kv_heads_are_divided_while_they_last_and_then_replicated(backend: str) -> None:
    heads = {tp: per_block(backend=backend, tp=tp) // (36 * 64 * 512) for tp in (1, 2, 8, 16)}
    assert heads == {1: 8, 2: 4, 8: 1, 16: 1}
    with pytest.raises(SpecError, match="--tp 3 and the model's 8 KV heads"):
        per_block(backend=backend, tp=3)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"pp": 2}, "--pipeline-parallel-size: LMDeploy has none"),
        ({"tp": 2, "dcp": 2}, "--decode-context-parallel-size"),
        ({"kv_cache_memory_bytes": GIB}, "--kv-cache-memory-bytes: LMDeploy has none"),
        ({"speculative": SpeculativeSpec(method="ngram", num_speculative_tokens=2)}, "--speculative-config"),
        ({"gpu_memory_utilization": 1.0}, "--gpu-memory-utilization must be below 1"),
        ({"gpu_memory_utilization": 1e-6}, "leave no room for the KV cache"),
        ({"kv_cache_dtype": "int4", "quant_policy": 8}, "--quant-policy 8 means int8"),
        ({"kv_cache_dtype": "fp8"}, "fp8 with LMDeploy: TurboMind does not store it"),
        ({"num_gpu_blocks_override": 500}, "TurboMind has no --num-gpu-blocks-override"),
        ({"backend": "pytorch", "block_size": 48}, "power of two"),
    ],
)
def test_a_flag_lmdeploy_would_refuse_is_one_sentence(flags: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SpecError, match=sentence):
        budget(**flags)


@pytest.mark.parametrize(
    ("scheme", "group", "turbomind_loads", "pytorch_loads"),
    [
        ("awq-int4", 128, True, True),
        ("gptq-int4", 128, True, False),
        ("awq-int4", 64, False, True),
        ("int4-packed", 32, True, True),
        ("fp8-block", 128, True, True),
        ("mxfp4", None, True, False),
        ("nvfp4", 16, False, False),
    ],
)
def test_each_engine_loads_its_own_weight_formats(
    scheme: str, group: int | None, turbomind_loads: bool, pytorch_loads: bool
) -> None:
    stored = replace(QWEN3_8B, quantisation=Quantisation(method="any", scheme=scheme, group_size=group))
    for backend, loads in (("turbomind", turbomind_loads), ("pytorch", pytorch_loads)):
        if loads:
            assert budget(stored, backend=backend).blocks.likely > 0
        else:
            with pytest.raises(UnsupportedModel, match=f"does not load {scheme}"):
                budget(stored, backend=backend)


def test_a_model_of_the_other_engine_is_refused_with_the_flag_that_serves_it() -> None:
    with pytest.raises(UnsupportedModel, match="use --backend pytorch"):
        budget(DEEPSEEK)
    with pytest.raises(UnsupportedModel, match=r"does not serve JambaForCausalLM$"):
        budget(replace(QWEN3_8B, architecture="JambaForCausalLM"))


# TurboMind


def test_qwen3_8b_has_7_blocks_of_9_mib_in_a_slab_of_64_mib() -> None:
    slab = slab_of(9 * MIB)
    assert (slab.size_bytes, slab.objects) == (64 * MIB, 7)


@given(st.integers(1, 4 * GIB))
def test_a_slab_is_a_power_of_two_that_objects_fill_or_the_largest(object_bytes: int) -> None:
    slab = slab_of(object_bytes)
    assert slab.size_bytes & (slab.size_bytes - 1) == 0
    assert slab.size_bytes >= max(32 * MIB, object_bytes)
    assert slab.objects == slab.size_bytes // object_bytes
    assert slab.objects * object_bytes >= 0.9499 * slab.size_bytes or slab.size_bytes >= GIB


def test_a_slab_grows_no_further_than_1_gib_and_a_larger_object_has_its_own() -> None:
    assert (slab_of(600 * MIB).size_bytes, slab_of(600 * MIB).objects) == (GIB, 1)
    assert (slab_of(1500 * MIB).size_bytes, slab_of(1500 * MIB).objects) == (2 * GIB, 1)


def test_aligning_the_arena_costs_turbomind_a_page() -> None:
    free = 2 * 100 * 64 * MIB
    gpu = replace(A100, memory_total_bytes=WEIGHTS.size_bytes + 512 * MIB + free)
    answer = budget(gpu=gpu, gpu_memory_utilization=0.5)
    assert answer.ledger.kv_bytes.likely == 100 * 64 * MIB
    assert answer.blocks.likely == 99 * 7


def test_turbomind_takes_its_share_after_the_weights_in_whole_slabs() -> None:
    answer = budget()
    free = A100.memory_total_bytes - WEIGHTS.size_bytes - 512 * MIB
    assert answer.ledger.kv_bytes.likely == int(free * 0.8)
    pages = (answer.ledger.kv_bytes.likely - 16 * MIB) // (32 * MIB)
    assert answer.blocks.likely == pages // 2 * 7 == 5677


def test_an_older_engine_has_no_slabs_and_takes_a_count() -> None:
    flags = EngineSpec(engine="lmdeploy")
    older = turbomind.kv_budget(QWEN3_8B, A100, flags, WEIGHTS, older_engine=True)
    assert older.blocks.likely == older.ledger.kv_bytes.likely // (9 * MIB) == 5770
    given_blocks = replace(flags, num_gpu_blocks_override=1000)
    counted = turbomind.kv_budget(QWEN3_8B, A100, given_blocks, WEIGHTS, older_engine=True)
    assert counted.blocks.is_exact
    assert (counted.blocks.likely, counted.source) == (1000, "flags")
    assert counted.ledger.kv_bytes.likely == 1000 * 9 * MIB


def test_turbomind_stores_latent_attention_as_keys_alone_on_every_rank() -> None:
    glm = replace(DEEPSEEK, architecture="Glm4MoeLiteForCausalLM")
    assert per_block(glm) == per_block(glm, tp=8) == 27 * 64 * 576 * 2
    assert per_block(glm, quant_policy=8) == 27 * 64 * (576 + 4)


def test_turbomind_frees_nothing_behind_a_window() -> None:
    windowed = replace(GQA, window_tokens=128)
    gpt_oss = model_of((12, windowed), (12, GQA), architecture="GptOssForCausalLM")
    answer = budget(gpt_oss)
    [group] = answer.groups
    assert (group.held(6400), group.layers) == (100, 24)
    assert any("frees no block" in caution for caution in answer.cautions)


def test_a_running_request_holds_a_frontier_of_recurrent_state_beside_its_blocks() -> None:
    answer = budget(QWEN3_5)
    paged, frontier = answer.groups
    assert (paged.layers, frontier.layers) == (8, 24)
    # A block is 2 MiB, 16 in 32 MiB. 24 layers of 32 heads x 128 x 128 x 2 B = 1 MiB fill a slab to the brim;
    # the convolutions, 24 x 8192 channels x 4 taps x 2 B = 1.5 MiB, come 21 in a slab of 32 MiB.
    assert answer.bytes_per_block == (2 * MIB,)
    assert frontier.held(1) == frontier.held(40_000) == 13  # ceil((24 + 32 / 21) / 2)
    assert sum(group.held(640) for group in answer.groups) == 10 + 13


def test_a_frontier_is_divided_over_the_ranks_and_widened_by_float32() -> None:
    assert budget(QWEN3_5, tp=2).groups[1].state_blocks == 13  # half of both
    assert budget(QWEN3_5, mamba_ssm_cache_dtype="float32").groups[1].state_blocks == 25


# The PyTorch engine


def test_the_runtime_is_reserved_before_the_share_is_taken() -> None:
    answer = budget(backend="pytorch")
    runtime = (8192 + 2 * 384) * 151_936 * 2
    assert answer.ledger.line("run-time reservation").size_bytes.likely == runtime
    free = A100.memory_total_bytes - WEIGHTS.size_bytes - 512 * MIB - runtime
    assert answer.ledger.kv_bytes.likely == int(free * 0.8)
    assert (answer.blocks.likely, answer.reserved_blocks) == (int(free * 0.8) // (9 * MIB), 1) == (5539, 1)


def limits_of(prefill_tokens: int) -> EngineLimits:
    return EngineLimits(
        max_model_len=8192,
        max_num_seqs=128,
        max_num_batched_tokens=prefill_tokens,
        block_size=64,
        memory_share=0.8,
    )


def test_too_few_blocks_halve_the_prefill_and_none_stop_the_engine() -> None:
    block, vocabulary = 9 * MIB, QWEN3_8B.vocab_size
    full = (8192 + 256) * vocabulary * 2
    sixteen = reserve(full + 20 * block, QWEN3_8B, limits_of(8192), block)
    assert (sixteen.prefill_tokens, sixteen.blocks) == (8192, 16)
    fifteen = reserve(full + 20 * block - 2, QWEN3_8B, limits_of(8192), block)
    assert (fifteen.prefill_tokens, fifteen.runtime_bytes) == (4096, (4096 + 256) * vocabulary * 2)
    assert fifteen.blocks > sixteen.blocks
    three = reserve(full + 4 * block, QWEN3_8B, limits_of(8192), block)
    assert (three.prefill_tokens, three.blocks > 3) == (4096, True)
    assert reserve(full + 3 * block, QWEN3_8B, limits_of(8192), block).blocks == 0
    assert reserve(0, QWEN3_8B, limits_of(8192), block).blocks == 0


def test_fp8_needs_no_scales_and_turbo_quant_packs_keys_and_values_apart() -> None:
    tokens = 36 * 8 * 64
    assert per_block(backend="pytorch", kv_cache_dtype="fp8") == tokens * 256
    assert per_block(backend="pytorch", kv_cache_dtype="turbo_quant") == tokens * (64 + 4 + 32 + 2)


@pytest.mark.parametrize(("gpu", "block_size"), [(H100, 64), (A100, 32)])
def test_latent_attention_is_576_wide_and_its_block_depends_on_flash_mla(gpu: Any, block_size: int) -> None:
    answer = budget(DEEPSEEK, gpu, backend="pytorch", tp=8)
    assert answer.limits.block_size == block_size
    assert answer.bytes_per_block == (27 * block_size * 576 * 2,)


def test_quantised_latents_pay_scales_for_values_they_do_not_have() -> None:
    assert per_block(DEEPSEEK, gpu=H100, backend="pytorch", quant_policy=8) == 27 * 64 * (576 + 4 + 4)


def test_a_sparse_layer_stores_its_indexer_and_packs_fp8_to_656_bytes() -> None:
    sparse = model_of(
        (61, (replace(MLA, sparse=True), IndexerKeys(head_size=128))), architecture="DeepseekV32ForCausalLM"
    )
    plain = budget(sparse, H100, backend="pytorch")
    assert plain.bytes_per_block == (61 * 64 * (1152 + 132),)
    assert per_block(sparse, gpu=H100, backend="pytorch", kv_cache_dtype="fp8") == 61 * 64 * (656 + 132)
    runtime = (8192 + 2048) * 151_936 * 2 + 512 * MIB
    assert plain.ledger.line("run-time reservation").size_bytes.likely == runtime
    with pytest.raises(SpecError, match="sparse MLA stores 16 bits or fp8"):
        per_block(sparse, gpu=H100, backend="pytorch", quant_policy=8)


def test_recurrent_states_have_a_pool_of_their_own_that_the_share_does_not_scale() -> None:
    answer = budget(QWEN3_5, backend="pytorch", max_num_seqs=100)
    slot = 24 * (32 * 128 * 128 + 8192 * 4) * 2
    assert state_slot_bytes(QWEN3_5, EngineSpec()) == slot
    assert answer.ledger.line("state cache").size_bytes.likely == 102 * slot
    assert [group.kind for group in answer.groups] == ["full"]
    smaller = budget(QWEN3_5, backend="pytorch", max_num_seqs=100, gpu_memory_utilization=0.4)
    assert smaller.ledger.line("state cache") == answer.ledger.line("state cache")


def test_a_window_in_the_config_frees_blocks_of_all_layers() -> None:
    mistral = model_of((32, replace(GQA, window_tokens=4096)), architecture="MistralForCausalLM")
    answer = budget(mistral, backend="pytorch")
    [group] = answer.groups
    step = answer.limits.in_flight_tokens
    # 20,000 computed and one in flight: (20,000 - 4,096) // 64 = 248 of 313 blocks are gone.
    assert group.held(20_001, step) == 313 - 248
    assert [group.held(tokens, step) for tokens in (4096, 4160, 4161)] == [64, 65, 65]
    assert max(group.held(tokens, step) for tokens in range(1, 20_000)) == 4096 // 64 + 1
    assert answer.limits.max_model_len == 40_960


def test_gpt_oss_and_gemma_3_free_nothing_and_gemma_2_too_much() -> None:
    layers = ((13, replace(GQA, window_tokens=4096)), (13, GQA))
    kinds = {
        name: budget(model_of(*layers, architecture=name), backend="pytorch").groups[0].kind
        for name in ("GptOssForCausalLM", "Gemma3ForConditionalGeneration", "Gemma2ForCausalLM")
    }
    assert list(kinds.values()) == ["full", "full", "window"]
    gemma_2 = budget(model_of(*layers, architecture="Gemma2ForCausalLM"), backend="pytorch")
    assert any("for every layer" in caution for caution in gemma_2.cautions)


def test_a_given_count_of_blocks_is_the_pool_and_bounds_the_length() -> None:
    answer = budget(backend="pytorch", num_gpu_blocks_override=100)
    assert (answer.blocks.likely, answer.blocks.is_exact, answer.source) == (100, True, "flags")
    assert answer.ledger.line(KV_CACHE).size_bytes.likely == 100 * 9 * MIB
    assert answer.limits.max_model_len == 99 * 64 - 64


def test_layers_of_different_shape_are_refused() -> None:
    with pytest.raises(UnsupportedModel, match="all layers in one shape"):
        budget(model_of((2, GQA), (2, replace(GQA, kv_heads=4))), backend="pytorch")
