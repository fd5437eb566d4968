"""The layout of vLLM's KV cache: 153 starts of vLLM's own sizing, and the rules that no start shows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from cache_models import Run, layer, model_of, runs

from estimator.catalog import read_gpu
from estimator.engine_spec import EngineSpec, SpeculativeSpec
from estimator.model import (
    Attention,
    CompressedAttention,
    IndexerKeys,
    LatentAttention,
    ModelSpec,
    RecurrentState,
)
from estimator.spec import SpecError, UnsupportedModel
from estimator.vllm_cache.defaults import limits
from estimator.vllm_cache.layout import KvLayout, headline, kv_layout, num_blocks

RUNS = runs()
GQA = Attention(kv_heads=8, head_size=128, head_size_v=128)
WINDOW = replace(GQA, window_tokens=1024)
LATENT = LatentAttention(latent_size=512, rope_size=64)
GDN = RecurrentState(
    mixer="gdn", heads=32, head_size=128, groups=16, state_size=128, conv_kernel=4, state_dtype="float32"
)
MAMBA2 = replace(GDN, mixer="mamba2", heads=64, head_size=64, groups=8, prefill_checkpoint=True)
HYBRID = model_of(*[layer(GDN)] * 6, *[layer(GQA)] * 2)


@pytest.fixture(params=RUNS.values(), ids=RUNS.keys())
def run(request: pytest.FixtureRequest) -> Run:
    found: Run = request.param
    return found


def test_blocks_bytes_and_log_line_are_vllms(run: Run) -> None:
    assert answers_of(run) == {key: value for key, value in run.answers.items() if key != "groups"}


def answers_of(run: Run) -> dict[str, Any]:
    resolved, layout = run.limits, run.layout
    blocks = num_blocks(layout, [run.engine.kv_cache_memory_bytes or 0] * run.engine.pp)
    line = headline(layout, blocks, resolved.max_model_len)
    return {
        "num_blocks": blocks,
        "bytes_per_block": list(layout.bytes_per_block),
        "blocks_per_request": layout.blocks_per_request,
        "min_bytes_one_request": layout.min_bytes_one_request,
        "kv_cache_size_tokens": line.cache_tokens,
        "max_concurrency": line.max_concurrency,
        "block_size": resolved.block_size,
        "max_in_flight_tokens": resolved.in_flight_tokens,
        "max_num_seqs": resolved.max_num_seqs,
        "max_num_batched_tokens": resolved.max_num_batched_tokens,
    }


def test_the_groups_are_vllms_one_by_one(run: Run) -> None:
    groups = run.layout.groups
    per_rank = [(group.block_size // run.engine.dcp, group.headline_blocks) for group in groups]
    assert per_rank == [(size, blocks) for size, blocks, _ in run.answers["groups"]]
    if run.engine.pp == 1:
        assert [group.layers for group in groups] == [count for *_, count in run.answers["groups"]]


def layout_of(model: ModelSpec, gpu: str = "h100-80gb", **flags: Any) -> KvLayout:
    engine = EngineSpec(**({"max_model_len": 8192} | flags))
    return kv_layout(model, read_gpu(gpu), engine, limits(model, read_gpu(gpu), engine))


def kinds(layout: KvLayout) -> list[tuple[str, int]]:
    return [(group.kind, group.layers) for group in layout.groups]


def test_every_rank_keeps_the_whole_latent() -> None:
    model = model_of(*[layer(LATENT)] * 4)
    assert layout_of(model).bytes_per_block == layout_of(model, tp=8).bytes_per_block == (4 * 16 * 576 * 2,)


def test_kv_heads_are_divided_while_they_last_then_replicated() -> None:
    model = model_of(layer(GQA))
    per_head = 16 * 2 * 128 * 2
    assert [layout_of(model, tp=tp).bytes_per_block[0] // per_head for tp in (1, 2, 8, 16)] == [8, 4, 1, 1]


@pytest.mark.parametrize(
    ("kv_dtype", "slot_bytes"),
    [
        ("auto", 512),
        ("bfloat16", 512),
        ("fp8", 256),
        ("fp8_e4m3", 256),
        ("fp8_e5m2", 256),
        ("fp8_per_token_head", 256 + 8),
        ("int8_per_token_head", 256 + 8),
        ("int4_per_token_head", 128 + 8),
        ("nvfp4", 2 * (64 + 8)),
    ],
)
def test_a_head_of_128_takes(kv_dtype: str, slot_bytes: int) -> None:
    assert layout_of(model_of(layer(GQA)), kv_cache_dtype=kv_dtype).bytes_per_block == (16 * 8 * slot_bytes,)


@pytest.mark.parametrize(
    ("kv_dtype", "slot_bytes"),
    [
        ("turboquant_k8v4", 128 + 68),
        ("turboquant_4bit_nc", 66 + 68),
        ("turboquant_k3v4_nc", 50 + 68),
        ("turboquant_3bit_nc", 50 + 52),
    ],
)
def test_turboquant_leaves_two_layers_at_each_end_in_16_bits(kv_dtype: str, slot_bytes: int) -> None:
    layout = layout_of(model_of(*[layer(GQA)] * 10), kv_cache_dtype=kv_dtype)
    assert layout.block_size == 32
    assert layout.bytes_per_block == (32 * 8 * (4 * 512 + 6 * slot_bytes),)


def test_turboquant_spares_no_layer_of_a_hybrid() -> None:
    [attention] = [
        g for g in layout_of(HYBRID, kv_cache_dtype="turboquant_4bit_nc").groups if g.kind == "full"
    ]
    assert attention.page_bytes == attention.block_size * 8 * (66 + 68)


@pytest.mark.parametrize(
    ("gpu", "kv_dtype", "block_size"),
    [
        ("a100-80gb", "auto", 16),
        ("h100-80gb", "auto", 16),
        ("h100-80gb", "fp8", 64),
        ("b200-180gb", "auto", 32),
        ("b200-180gb", "fp8", 32),
    ],
)
def test_the_kernel_for_latents_decides_the_block(gpu: str, kv_dtype: str, block_size: int) -> None:
    assert layout_of(model_of(layer(LATENT)), gpu, kv_cache_dtype=kv_dtype).block_size == block_size


def test_sparse_latents_pack_656_bytes_a_token_on_hopper_and_576_on_blackwell() -> None:
    model = model_of(layer(IndexerKeys(head_size=128), replace(LATENT, sparse=True)))
    assert layout_of(model, kv_cache_dtype="fp8").bytes_per_block == (64 * (132 + 656),)
    assert layout_of(model, "b200-180gb", kv_cache_dtype="fp8").bytes_per_block == (64 * (132 + 576),)


def test_glm_stores_fp8_on_blackwell_unasked() -> None:
    sparse = layer(IndexerKeys(head_size=128), replace(LATENT, sparse=True))
    glm = model_of(sparse, architecture="GlmMoeDsaForCausalLM")
    assert layout_of(glm, "b200-180gb").bytes_per_block == (64 * (132 + 576),)
    assert layout_of(glm).bytes_per_block == (64 * (132 + 1152),)


def test_a_state_fits_the_attention_page_of_its_model() -> None:
    layout = layout_of(HYBRID)
    state, attention = layout.groups[0], layout.groups[-1]
    needed = 3 * (2 * 16 * 128 + 32 * 128) * 2 + 32 * 128 * 128 * 4
    assert state.page_bytes == attention.page_bytes >= needed
    assert attention.page_bytes - 16 * 4096 < needed  # a block of 16 tokens less would not hold it
    assert kinds(layout) == [("state", 2), ("state", 2), ("state", 2), ("full", 2)]


def test_a_state_holds_the_taps_of_every_guessed_token() -> None:
    guesses = SpeculativeSpec(method="ngram", num_speculative_tokens=5)
    plain = model_of(layer(GDN))
    taps = (2 * 16 * 128 + 32 * 128) * 2
    assert (
        layout_of(plain, speculative=guesses).bytes_per_block[0]
        == layout_of(plain).bytes_per_block[0] + 5 * taps
    )


def test_a_state_group_takes_a_block_for_each_state_alive() -> None:
    guesses = SpeculativeSpec(method="ngram", num_speculative_tokens=3)
    mamba = model_of(*[layer(MAMBA2)] * 2, *[layer(GQA)] * 2)

    def states(model: ModelSpec, **flags: Any) -> int:
        return layout_of(model, **flags).groups[0].headline_blocks

    assert states(HYBRID) == 2
    assert states(HYBRID, enable_prefix_caching=False) == 1
    assert states(HYBRID, speculative=guesses) == 5
    assert states(mamba) == 3  # and one for the checkpoint of a prompt
    assert states(mamba, enable_prefix_caching=False) == 1


def test_groups_of_b_and_c_are_padded_up_to_the_ranks() -> None:
    one_group = model_of(layer(replace(MAMBA2, groups=1)))
    alone, split = (layout_of(one_group, tp=tp).bytes_per_block[0] for tp in (1, 8))
    conv, matrix = 3 * 2, 64 * 64 * 128 * 4
    assert alone == conv * (4096 + 2 * 128) + matrix
    assert split == conv * (4096 + 2 * 8 * 128) // 8 + matrix // 8


def test_layers_are_dealt_to_groups_of_the_smallest_bucket() -> None:
    assert kinds(layout_of(model_of(*[layer(WINDOW)] * 10, *[layer(GQA)] * 4))) == [
        *(("window", 4), ("window", 3), ("window", 3)),
        ("full", 4),
    ]


def test_buckets_of_about_one_size_are_padded_to_the_larger() -> None:
    layout = layout_of(model_of(*[layer(WINDOW)] * 12, *[layer(GQA)] * 13))
    assert kinds(layout) == [("window", 12), ("full", 13)]
    assert layout.bytes_per_block == (13 * 65536,)


def test_a_smaller_page_takes_more_tokens_a_block() -> None:
    narrow = replace(WINDOW, kv_heads=2)
    layout = layout_of(model_of(*[layer(narrow)] * 2, *[layer(GQA)] * 2))
    assert [(group.kind, group.block_size) for group in layout.groups] == [("window", 64), ("full", 16)]


def test_a_page_that_does_not_divide_is_padded() -> None:
    odd = replace(WINDOW, kv_heads=3)
    layout = layout_of(model_of(*[layer(odd)] * 2, *[layer(GQA)] * 2))
    assert [(group.block_size, group.page_bytes) for group in layout.groups] == [(16, 65536), (16, 65536)]


def test_without_the_hybrid_manager_windows_keep_every_token() -> None:
    model = model_of(*[layer(WINDOW)] * 5, layer(GQA))
    assert kinds(layout_of(model, disable_hybrid_kv_cache_manager=True)) == [("full", 6)]
    alone = model_of(*[layer(WINDOW)] * 5)
    assert kinds(layout_of(alone, disable_hybrid_kv_cache_manager=True)) == [("window", 5)]


def test_drafts_lie_on_the_last_stage() -> None:
    model = model_of(*[layer(GQA)] * 4)
    eagle = SpeculativeSpec(method="eagle3", num_speculative_tokens=3, draft_layers=2)
    assert layout_of(model, pp=2, speculative=eagle).bytes_per_block == (2 * 65536, 4 * 65536)


def test_multi_token_prediction_adds_the_checkpoints_own_layers() -> None:
    mtp = SpeculativeSpec(method="mtp", num_speculative_tokens=1)
    model = model_of(*[layer(LATENT)] * 4, draft_layers=(layer(LATENT),))
    assert layout_of(model, speculative=mtp).groups[0].layers == 5
    with pytest.raises(SpecError, match="no multi-token-prediction layers"):
        layout_of(model_of(layer(LATENT)), speculative=mtp)


def test_several_draft_modules_lengthen_the_window() -> None:
    model = model_of(layer(WINDOW), layer(GQA), draft_layers=(layer(GQA),) * 3)
    guesses = [SpeculativeSpec(method="mtp", num_speculative_tokens=count) for count in (1, 3)]
    reach = [layout_of(model, speculative=asked).groups[0].reach_tokens for asked in guesses]
    assert reach == [1024, 1026]


@pytest.mark.parametrize(
    ("flags", "batches"),
    [
        ({}, 2),
        ({"pp": 2}, 3),
        ({"async_scheduling": False}, 1),
        ({"pp": 2, "async_scheduling": False}, 2),
        ({"speculative": SpeculativeSpec(method="ngram", num_speculative_tokens=2)}, 1),
        ({"speculative": SpeculativeSpec(method="eagle", num_speculative_tokens=2)}, 2),
    ],
)
def test_so_many_batches_are_in_flight(flags: dict[str, Any], batches: int) -> None:
    engine = EngineSpec(max_model_len=8192, **flags)
    resolved = limits(model_of(layer(GQA), layer(GQA)), read_gpu("h100-80gb"), engine)
    assert resolved.in_flight_tokens == batches * 8192


def test_a_whole_video_fits_one_batch_of_a_model_whose_images_see_themselves() -> None:
    gemma = model_of(layer(GQA), architecture="Gemma4ForConditionalGeneration", model_type="gemma4")
    assert limits(gemma, read_gpu("a100-80gb"), EngineSpec()).max_num_batched_tokens == 2496
    assert limits(gemma, read_gpu("h100-80gb"), EngineSpec()).max_num_batched_tokens == 8192


@pytest.mark.parametrize(
    ("model", "gpu", "flags", "sentence"),
    [
        (model_of(layer(GQA)), "h100-80gb", {"tp": 3}, "--tp 3 does not divide the 64 attention heads"),
        (model_of(layer(GQA)), "h100-80gb", {"block_size": 20}, "--block-size 20 .* use 16"),
        (model_of(layer(GQA)), "h100-80gb", {"kv_cache_dtype": "fp9"}, "'fp9' is not known; use one of auto"),
        (
            model_of(layer(LATENT)),
            "h100-80gb",
            {"kv_cache_dtype": "nvfp4"},
            "nvfp4 does not apply to the latent",
        ),
        (model_of(layer(GQA)), "h100-80gb", {"kv_cache_dtype": "fp8_ds_mla"}, "for latent attention only"),
        (model_of(layer(GQA)), "h100-80gb", {"tp": 8, "dcp": 2}, "needs --tp 16 or more"),
        (model_of(layer(WINDOW)), "h100-80gb", {"tp": 16, "dcp": 2}, "does not go with the sliding window"),
        (model_of(layer(GQA)), "h100-80gb", {"max_model_len": 2**25}, "--max-model-len .* use that or less"),
        (model_of(layer(GQA)), "h100-80gb", {"max_num_seqs": 9000}, "is below --max-num-seqs"),
        (
            HYBRID,
            "h100-80gb",
            {"mamba_ssm_cache_dtype": "int4"},
            "--mamba-ssm-cache-dtype 'int4' is not known",
        ),
        (model_of(layer(replace(LATENT, sparse=True))), "a100-80gb", {}, "no sparse latent attention for"),
    ],
)
def test_what_vllm_refuses_is_one_sentence(
    model: ModelSpec, gpu: str, flags: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(SpecError, match=sentence):
        layout_of(model, gpu, **flags)


def test_a_compression_ratio_vllm_does_not_know_is_refused() -> None:
    odd = CompressedAttention(head_size=512, rope_size=64, window_tokens=128, ratio=16)
    with pytest.raises(SpecError, match="not 16"):
        layout_of(model_of(layer(odd)))


def test_latent_pages_that_cannot_be_padded_are_refused() -> None:
    with pytest.raises(UnsupportedModel, match="cannot pad it"):
        layout_of(model_of(layer(LATENT), layer(WINDOW)))
