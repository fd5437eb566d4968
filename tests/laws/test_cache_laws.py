"""Laws of the KV cache layout that hold for every model and every set of flags."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from cache_models import layer, model_of
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from estimator.catalog import read_gpu
from estimator.engine_spec import EngineSpec
from estimator.held import InFlight, held_over_life
from estimator.kv_group import KvGroup
from estimator.model import Attention, Cache, LatentAttention, ModelSpec, RecurrentState
from estimator.spec import SpecError, Workload
from estimator.vllm_cache.defaults import limits
from estimator.vllm_cache.layout import KvLayout, kv_layout, num_blocks

H100 = read_gpu("h100-80gb")
REACH = st.one_of(st.none(), st.sampled_from([128, 512, 1000, 4096]))


@st.composite
def attentions(draw: st.DrawFn) -> Cache:
    head_size = draw(st.sampled_from([64, 128, 256]))
    return Attention(
        kv_heads=draw(st.sampled_from([1, 2, 8, 16])),
        head_size=head_size,
        head_size_v=head_size,
        window_tokens=draw(REACH),
    )


STATES = st.builds(
    RecurrentState,
    mixer=st.sampled_from(["mamba2", "gdn"]),
    heads=st.sampled_from([32, 64]),
    head_size=st.just(128),
    groups=st.sampled_from([8, 16]),
    state_size=st.just(128),
    conv_kernel=st.just(4),
    prefill_checkpoint=st.booleans(),
)


@st.composite
def models(draw: st.DrawFn) -> ModelSpec:
    """Up to three kinds of layers, one of them attention that keeps every token."""
    full = Attention(kv_heads=8, head_size=128, head_size_v=128)
    repeated = [(full, draw(st.integers(1, 12)))]
    repeated += [(draw(attentions()), draw(st.integers(1, 12)))]
    if draw(st.booleans()):
        repeated += [(draw(STATES), draw(st.integers(1, 12)))]
    return model_of(*(layer(cache) for cache, count in repeated for _ in range(count)))


def layout_of(model: ModelSpec, **flags: Any) -> KvLayout:
    engine = EngineSpec(**({"max_model_len": 32_768} | flags))
    return kv_layout(model, H100, engine, limits(model, H100, engine))


@given(models())
def test_every_layer_is_in_one_group(model: ModelSpec) -> None:
    assert sum(group.layers for group in layout_of(model).groups) == len(model.layers)


@given(models(), st.sampled_from([2, 4, 8]))
def test_more_ranks_never_cost_more_bytes_a_token(model: ModelSpec, tp: int) -> None:
    assume(not model.has_state)  # a smaller page may take fewer tokens there
    one, many = layout_of(model), layout_of(model, tp=tp)
    assert per_token(many) <= per_token(one)


def per_token(layout: KvLayout) -> float:
    return layout.bytes_per_block[0] / min(group.block_size for group in layout.groups)


@given(models(), st.sampled_from([2, 3]))
def test_the_stages_hold_together_no_less_than_one_would(model: ModelSpec, pp: int) -> None:
    assume(len(model.layers) >= pp)
    assert sum(layout_of(model, pp=pp).bytes_per_block) >= layout_of(model).bytes_per_block[0]


@given(models(), st.integers(0, 2**40), st.integers(0, 2**30))
def test_more_memory_never_gives_fewer_blocks(model: ModelSpec, size_bytes: int, more_bytes: int) -> None:
    layout = layout_of(model)
    assert num_blocks(layout, [size_bytes]) <= num_blocks(layout, [size_bytes + more_bytes])


@given(models(), st.integers(1, 32_767))
def test_a_shorter_length_never_needs_more_blocks(model: ModelSpec, length: int) -> None:
    assert layout_of(model, max_model_len=length).blocks_per_request <= layout_of(model).blocks_per_request


@given(st.integers(1, 200_000), st.integers(1, 20_000), st.integers(1, 512), st.integers(0, 40_000))
def test_a_window_never_holds_more_than_its_reach_and_what_is_in_flight(
    tokens: int, reach: int, block_size: int, in_flight: int
) -> None:
    group = KvGroup(kind="window", block_size=block_size, layers=1, page_bytes=1, reach_tokens=reach)
    assert group.held(tokens, in_flight) <= -(-(reach - 1 + in_flight) // block_size) + 1


@given(st.integers(1, 200_000), st.integers(1, 20_000), st.integers(1, 512))
def test_what_a_window_frees_it_never_needs_again(tokens: int, reach: int, block_size: int) -> None:
    group = KvGroup(kind="window", block_size=block_size, layers=1, page_bytes=1, reach_tokens=reach)
    assert group.held(tokens) * block_size >= min(tokens, reach - 1)


@given(models(), st.integers(1, 20_000), st.integers(1, 3_000), st.integers(1, 3))
@settings(max_examples=60)
def test_the_mean_lies_between_nothing_and_the_worst_moment(
    model: ModelSpec, prompt: int, answer: int, steps: int
) -> None:
    in_flight = InFlight(steps=steps, chunk_tokens=8192)
    held = held_over_life(layout_of(model).groups, Workload.constant(prompt, answer), in_flight)
    worst = max(held.longest_blocks, held.prefill_blocks)
    assert 0 < held.mean_blocks <= worst
    assert held.guaranteed(100 * worst) >= 100


@given(models(), st.integers(0, 10_000), st.integers(0, 10_000))
@settings(max_examples=60)
def test_more_blocks_never_promise_fewer_requests(model: ModelSpec, usable: int, more: int) -> None:
    in_flight = InFlight(steps=2, chunk_tokens=8192)
    held = held_over_life(layout_of(model).groups, Workload.constant(3000, 300), in_flight)
    assert held.guaranteed(usable) <= held.guaranteed(usable + more)


@given(
    st.sampled_from(["auto", "fp8", "int8_per_token_head", "nvfp4", "turboquant_4bit_nc", "fp8_ds_mla", "x"]),
    st.sampled_from([1, 2, 3, 8, 16]),
    st.sampled_from([None, 16, 48, 100, 256]),
    models(),
)
def test_a_layout_is_given_or_refused_in_a_sentence(
    kv_dtype: str, tp: int, block_size: int | None, model: ModelSpec
) -> None:
    with suppress(SpecError):
        assert layout_of(model, kv_cache_dtype=kv_dtype, tp=tp, block_size=block_size).bytes_per_block[0] > 0


@given(st.integers(1, 8))
def test_latents_are_whole_on_every_rank(layers: int) -> None:
    model = model_of(*[layer(LatentAttention(latent_size=512, rope_size=64))] * layers)
    assert {layout_of(model, tp=tp).bytes_per_block for tp in (1, 2, 8)} == {(layers * 18_432,)}
