"""The textbook memory of inference and training: every figure people publish, and which reading gives it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.spec import SpecError
from estimator.textbook_memory import (
    CUDA_KERNELS_BYTES,
    ELEMENT_BITS,
    InferenceMemory,
    TextbookModel,
    activation_bytes,
    gqa_kv_cache_bytes,
    inference_memory,
    kv_cache_bytes,
    mixed_training_bytes,
    overhead_bytes,
    padded_weights_bytes,
    quantisation_factor,
    training_memory,
    weight_bytes,
)
from estimator.units import GB, GIB

BILLION = 10**9
FP32_GIB_OF_A_BILLION = 3.725  # published tables round 4 x 10**9 / 2**30 = 3.72529 before they multiply


def model(**changes: Any) -> TextbookModel:
    """The worked example of 48 layers, 32 heads of 128 and a hidden size of 4,096."""
    facts: dict[str, Any] = {
        "name": "example",
        "parameters": 7_200_000_000,
        "layers": 48,
        "attention_heads": 32,
        "kv_heads": 32,
        "head_dim": 128,
        "hidden_size": 4096,
    }
    return TextbookModel(**facts | changes)


def test_7b_in_fp16_is_14_gb_and_13_04_gib() -> None:
    size = weight_bytes(7 * BILLION, "fp16")
    assert size == 14 * GB
    assert round(size / GIB, 2) == 13.04


@pytest.mark.parametrize(
    ("dtype", "gigabytes"),
    [("fp64", 56), ("fp32", 28), ("fp16", 14), ("bf16", 14), ("int8", 7), ("int4", 3.5)],
)
def test_each_width_of_a_parameter_has_its_bytes(dtype: str, gigabytes: float) -> None:
    assert weight_bytes(7 * BILLION, dtype) == gigabytes * GB


def test_an_odd_number_of_int4_parameters_fills_its_last_byte() -> None:
    assert weight_bytes(3, "int4") == 2


@pytest.mark.parametrize("dtype", ELEMENT_BITS)
def test_the_quantisation_factor_divides_the_fp32_size(dtype: str) -> None:
    assert weight_bytes(8 * BILLION, "fp32") / quantisation_factor(dtype) == weight_bytes(8 * BILLION, dtype)


@pytest.mark.parametrize(
    ("billions", "published_gib", "exact_gib", "real_parameters", "real_gib"),
    [
        pytest.param(8, 29.8, 29.802, 8_030_261_248, 29.915, id="Llama-3-8B"),
        pytest.param(7, 26.075, 26.077, 6_738_415_616, 25.103, id="Llama-2-7B"),
        pytest.param(110, 409.75, 409.782, 111_209_914_368, 414.289, id="Qwen1.5-110B"),
    ],
)
def test_published_fp32_sizes_are_of_the_name_and_the_real_model_differs(
    billions: int, published_gib: float, exact_gib: float, real_parameters: int, real_gib: float
) -> None:
    assert billions * FP32_GIB_OF_A_BILLION == pytest.approx(published_gib)
    assert weight_bytes(billions * BILLION, "fp32") / GIB == pytest.approx(exact_gib, abs=5e-4)
    assert weight_bytes(real_parameters, "fp32") / GIB == pytest.approx(real_gib, abs=5e-4)


def test_qwen_110b_in_bf16_is_about_205_gib_and_220_gb() -> None:
    size = weight_bytes(110 * BILLION, "bf16")
    assert round(size / GIB) == 205
    assert size == 220 * GB


def test_12_000_tokens_of_48_layers_and_32_heads_hold_8_79_gib_of_kv_cache() -> None:
    size = kv_cache_bytes(model(), tokens=12_000)
    assert size == 9_437_184_000
    assert (round(size / GIB, 2), round(size / GB, 2)) == (8.79, 9.44)


def test_their_activations_are_4_39_gib_printed_as_4_72_gb() -> None:
    size = activation_bytes(model(), tokens=12_000)
    assert size == 4_718_592_000
    assert (round(size / GIB, 2), round(size / GB, 2)) == (4.39, 4.72)


@pytest.mark.parametrize(
    ("parameters", "dtype", "weights_gb", "overhead_gb"),
    [
        pytest.param(72_000_000_000, "int8", 72, 10.8, id="72,000,000,000 at one byte"),
        pytest.param(72_000_000_000, "fp16", 144, 21.6, id="72,000,000,000 at two bytes"),
        pytest.param(7_200_000_000, "int8", 7.2, 1.08, id="7.2 billion at one byte"),
        pytest.param(7_200_000_000, "fp16", 14.4, 2.16, id="7.2 billion at two bytes"),
    ],
)
def test_the_published_10_8_gb_needs_72_billion_parameters_not_7_2(
    parameters: int, dtype: str, weights_gb: float, overhead_gb: float
) -> None:
    """The example says 7.2 billion and writes 72,000,000,000; only its digits, at one byte, give 10.8."""
    weights = weight_bytes(parameters, dtype)
    assert weights == round(weights_gb * GB)
    assert overhead_bytes(weights, 15) == round(overhead_gb * GB)
    assert (overhead_bytes(weights, 15) == 10_800_000_000) == (weights_gb == 72)


def test_the_overhead_is_10_to_20_percent_and_1_2_times_the_weights_is_its_upper_end() -> None:
    assert [overhead_bytes(100, percent) for percent in (10, 15, 20)] == [10, 15, 20]
    assert padded_weights_bytes(14 * GB) == 14 * GB + overhead_bytes(14 * GB, 20)


def test_the_total_is_the_sum_of_the_worked_parts() -> None:
    memory = inference_memory(model(parameters=72 * BILLION), tokens=12_000, weight_dtype="int8")
    assert memory == InferenceMemory(
        weights_bytes=72 * GB,
        overhead_bytes=10_800_000_000,
        kv_cache_bytes=9_437_184_000,
        activation_bytes=4_718_592_000,
    )
    assert memory.total_bytes == 96_955_776_000


@given(st.integers(1, 1000), st.integers(1, 100_000), st.sampled_from(sorted(ELEMENT_BITS)))
def test_ten_times_the_requests_grow_kv_and_activations_tenfold_and_nothing_else(
    batch: int, tokens: int, dtype: str
) -> None:
    some = inference_memory(model(), tokens=tokens, batch=batch, cache_dtype=dtype)
    more = inference_memory(model(), tokens=tokens, batch=10 * batch, cache_dtype=dtype)
    assert more.fixed_bytes == some.fixed_bytes
    assert more.growing_bytes == 10 * some.growing_bytes


def test_grouped_query_attention_makes_the_kv_rule_four_times_too_high_for_qwen3_8b() -> None:
    qwen = model(layers=36, attention_heads=32, kv_heads=8)
    assert gqa_kv_cache_bytes(qwen, tokens=1, dtype="bf16") == 147_456
    assert kv_cache_bytes(qwen, tokens=1, dtype="bf16") == 4 * 147_456


def test_llama_6b_with_adamw_in_fp32_is_24_24_and_48_gb() -> None:
    memory = training_memory(6 * BILLION, dtype="fp32", optimiser="adamw")
    assert (memory.weights_bytes, memory.gradients_bytes, memory.optimiser_bytes) == (
        24 * GB,
        24 * GB,
        48 * GB,
    )


def test_llama_6b_in_int8_is_25_3_gb_with_the_cuda_kernels() -> None:
    memory = training_memory(6 * BILLION, dtype="int8", optimiser="adamw")
    assert (memory.weights_bytes, memory.gradients_bytes, memory.optimiser_bytes) == (6 * GB, 6 * GB, 12 * GB)
    assert CUDA_KERNELS_BYTES == 1_300_000_000
    assert memory.total_bytes == 25_300_000_000
    assert round(memory.total_bytes / GIB, 2) == 23.56


@pytest.mark.parametrize(("optimiser", "gigabytes"), [("sgd", 0), ("sgd-momentum", 24), ("adamw", 48)])
def test_the_optimiser_decides_its_states(optimiser: str, gigabytes: int) -> None:
    assert training_memory(6 * BILLION, optimiser=optimiser).optimiser_bytes == gigabytes * GB


def test_mixed_precision_training_takes_16_bytes_a_parameter() -> None:
    assert mixed_training_bytes(7 * BILLION) == 112 * GB


def test_a_mixture_of_experts_is_held_whole_and_works_with_its_active_part() -> None:
    mixture = model(parameters=671 * BILLION, active_parameters=37 * BILLION)
    assert inference_memory(mixture, tokens=1, weight_dtype="int8").weights_bytes == 671 * GB
    assert mixture.parameters_of_a_token == 37 * BILLION
    assert model().parameters_of_a_token == model().parameters


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("parameters", 0),
        ("layers", -1),
        ("kv_heads", 0),
        ("active_parameters", 0),
        ("active_parameters", 10**12),
    ],
)
def test_a_model_that_cannot_be_is_refused_by_the_field(field: str, value: int) -> None:
    with pytest.raises(SpecError, match=f"^{field} must be"):
        model(**{field: value})


def test_unknown_names_and_impossible_shares_are_refused_with_what_is_allowed() -> None:
    with pytest.raises(SpecError, match="dtype must be one of fp64, fp32, fp16, bf16, int8, int4, got fp4"):
        weight_bytes(1, "fp4")
    with pytest.raises(SpecError, match="optimiser must be one of sgd, sgd-momentum, adamw, got lion"):
        training_memory(1, optimiser="lion")
    with pytest.raises(SpecError, match="overhead_percent must be 0 to 100, got 101"):
        overhead_bytes(1, 101)
    with pytest.raises(SpecError, match="tokens must be 1 or more, got 0"):
        kv_cache_bytes(model(), tokens=0)
