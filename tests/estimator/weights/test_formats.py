"""Bytes of a matrix in each format, against the shapes that vLLM's create_weights makes, counted by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.model import Matrix, Part, Quantisation
from estimator.spec import UnsupportedModel
from estimator.weights.formats import SCHEMES, matrix_bytes
from estimator.weights.shard import rounded, shard_of

LINEAR = Matrix(name="mlp.gate_up_proj", parts=(Part(rows=256), Part(rows=256)), columns=512, split="output")
EXPERTS = Matrix(
    name="mlp.experts.gate_up_proj",
    parts=(Part(rows=256), Part(rows=256)),
    columns=512,
    split="output",
    experts=8,
)
DOWN = Matrix(name="mlp.down_proj", parts=(Part(rows=512),), columns=256, split="input")
ELEMENTS = 512 * 512


def bytes_of(matrix: Matrix, scheme: str, *, tp: int = 1, group_size: int | None = None) -> int:
    quantisation = Quantisation(method="any", scheme=scheme, group_size=group_size)
    return matrix_bytes(matrix, shard_of(matrix, tp), scheme, quantisation)


@pytest.mark.parametrize(
    ("scheme", "group_size", "expected"),
    [
        ("fp8-block", 128, ELEMENTS + 4 * 4 * 4),  # 4 x 4 blocks of 128, a float32 each
        ("fp8-block-e8m0", None, ELEMENTS + 4 * 4),  # the same with 8-bit scales
        ("fp8-tensor", None, ELEMENTS + 2 * 4),  # a scale for gate and for up
        ("fp8-tensor-static", None, ELEMENTS + 4 * 4),  # and one each for the activations
        ("fp8-channel", None, ELEMENTS + 512 * 4),
        ("int8-channel", None, ELEMENTS + 512 * 4),
        ("int4-packed", 128, ELEMENTS // 2 + 512 * 4 * 2 + 16),  # 4 groups a row; two int64 of shape
        ("int4-packed-zeros", 128, ELEMENTS // 2 + 512 * 4 * 2 + 16 + 4 * 512 // 2),  # 4 bits a zero
        ("int4-packed", None, ELEMENTS // 2 + 512 * 2 + 16),  # one group a row
        ("awq-int4", 128, ELEMENTS // 2 + 4 * 512 * 2 + 4 * 512 // 2),
        ("gptq-int4", 128, ELEMENTS // 2 + 4 * 512 * 2 + 4 * 512 // 2),
        ("gptq-int8", 128, ELEMENTS + 4 * 512 * 2 + 4 * 512),
        ("nvfp4", None, ELEMENTS // 2 + ELEMENTS // 16 + 4 * 4),  # two weight and two input scales
        ("nvfp4-a16", None, ELEMENTS // 2 + ELEMENTS // 16 + 2 * 4),
        ("nvfp4-a16-modelopt", None, ELEMENTS // 2 + ELEMENTS // 16 + 2 * 4 + 2 * 2),
        ("mxfp4", None, ELEMENTS // 2 + ELEMENTS // 32),
        ("mxfp8", None, ELEMENTS + ELEMENTS // 32),
    ],
)
def test_a_linear_layer_keeps_its_weight_and_its_scales(
    scheme: str, group_size: int | None, expected: int
) -> None:
    assert bytes_of(LINEAR, scheme, group_size=group_size) == expected


@pytest.mark.parametrize(
    ("scheme", "group_size", "one_expert"),
    [
        ("fp8-block", 128, ELEMENTS + 4 * 4 * 4),
        ("fp8-tensor-static", None, ELEMENTS + 3 * 4),  # two weight scales, one input scale
        ("int4-packed", 32, ELEMENTS // 2 + 512 * 16 * 2 + 4),  # the shape as two 16-bit numbers
        ("gptq-int4", 128, ELEMENTS // 2 + 4 * 512 * 2 + 4 * 512 // 2 + 512 * 2),  # a bias nobody asked for
        ("awq-int4", 128, ELEMENTS // 2 + 4 * 512 * 2 + 4 * 512 // 2),
        (
            "nvfp4-a16-modelopt",
            None,
            ELEMENTS // 2 + ELEMENTS // 16 + 4 * 4,
        ),  # activation scales all the same
    ],
)
def test_experts_keep_scales_of_their_own(scheme: str, group_size: int | None, one_expert: int) -> None:
    assert bytes_of(EXPERTS, scheme, group_size=group_size) == 8 * one_expert


def test_experts_cut_inside_a_block_get_finer_scales() -> None:
    wide = Matrix(name="e", parts=(Part(rows=192), Part(rows=192)), columns=512, split="output", experts=2)
    # half of 192 rows is 96: blocks of 32 fit, 3 a part and 16 a row
    assert bytes_of(wide, "fp8-block", tp=2) == 2 * (192 * 512 + 4 * 2 * 3 * 16)


@pytest.mark.parametrize(
    ("matrix", "scheme", "tp", "group_size"),
    [
        (replace(LINEAR, parts=LINEAR.parts[:1]), "fp8-block", 4, 128),  # 64 rows
        (DOWN, "fp8-block", 4, 128),  # 64 columns
        (DOWN, "int4-packed", 4, 128),
        (DOWN, "nvfp4", 32, None),  # 8 columns
    ],
)
def test_a_rank_that_would_cut_a_block_is_refused(
    matrix: Matrix, scheme: str, tp: int, group_size: int | None
) -> None:
    with pytest.raises(UnsupportedModel, match=f"{matrix.name} in {scheme}"):
        bytes_of(matrix, scheme, tp=tp, group_size=group_size)


def test_merged_matrices_may_be_cut_inside_a_block_and_share_its_scales() -> None:
    # a quarter is 64 rows of either part: together one block of 128, and 4 blocks a row
    assert bytes_of(LINEAR, "fp8-block", tp=4) == 128 * 512 + 4 * 1 * 4


def test_an_unquantised_matrix_has_its_own_element_width() -> None:
    router = Matrix(name="gate", parts=(Part(rows=8),), columns=512, split="none", element_bytes=4)
    assert matrix_bytes(router, shard_of(router, 4), None, None) == 8 * 512 * 4


def test_mxfp4_experts_are_padded_on_both_sides() -> None:
    odd = Matrix(name="experts.down", parts=(Part(rows=2880),), columns=720, split="input", experts=2)
    padded = rounded(shard_of(odd, 1), 256)
    assert (padded.rows, padded.columns) == ((3072,), 768)
    bias = Matrix(name="experts.down.bias", parts=(Part(rows=2880),), columns=1, split="none", experts=2)
    assert rounded(shard_of(bias, 1), 256).elements == 2 * 3072


@given(
    scheme=st.sampled_from(sorted(SCHEMES)),
    rows=st.integers(1, 6).map(lambda blocks: 512 * blocks),
    columns=st.integers(1, 6).map(lambda blocks: 512 * blocks),
    tp=st.sampled_from([1, 2, 4]),
    split=st.sampled_from(["output", "input"]),
)
def test_all_ranks_together_hold_at_least_the_matrix(
    scheme: str, rows: int, columns: int, tp: int, split: str
) -> None:
    matrix = Matrix(name="m", parts=(Part(rows=rows),), columns=columns, split=split)  # type: ignore[arg-type]
    whole, piece = (bytes_of(matrix, scheme, tp=count, group_size=128) for count in (1, tp))
    assert piece <= whole <= tp * piece
    assert whole * 8 >= 4 * matrix.elements  # never under 4 bits an element


@given(experts=st.integers(2, 300), tp=st.sampled_from([1, 2, 4, 8, 16]))
def test_expert_parallelism_deals_out_whole_experts(experts: int, tp: int) -> None:
    matrix = Matrix(name="m", parts=(Part(rows=7),), columns=5, split="output", experts=experts)
    shard = shard_of(matrix, tp, expert_parallel=True)
    assert (shard.rows, shard.columns) == ((7,), 5)
    assert experts <= shard.experts * tp < experts + tp


@given(kv_heads=st.sampled_from([1, 2, 4, 8]), tp=st.sampled_from([1, 2, 4, 8, 16]))
def test_a_rank_keeps_at_least_one_kv_head(kv_heads: int, tp: int) -> None:
    parts = Part(rows=16 * 64), Part(rows=kv_heads * 64, kv_heads=kv_heads)
    matrix = Matrix(name="qkv", parts=parts, columns=8, split="output")
    assert shard_of(matrix, tp).rows == (16 * 64 // tp, max(kv_heads // tp, 1) * 64)


def test_a_vision_tower_is_whole_on_every_rank_where_tp_does_not_divide_its_heads() -> None:
    tower = Matrix(name="wqkv", parts=(Part(rows=96),), columns=8, split="output", heads=12)
    assert [shard_of(tower, tp).rows for tp in (1, 4, 8)] == [(96,), (24,), (96,)]


def test_a_ranks_rows_may_be_padded_together_after_the_division() -> None:
    parts = Part(rows=128, kv_heads=1), Part(rows=96)
    matrix = Matrix(name="m", parts=parts, columns=8, split="output", rank_multiple=16)
    assert [sum(shard_of(matrix, tp).rows) for tp in (1, 8, 16)] == [224, 144, 144]
