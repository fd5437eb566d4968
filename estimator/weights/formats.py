"""Bytes of a shard in each way vLLM stores a linear layer: the weight and the scales beside it.

Source: create_weights of vLLM 0.32 model_executor/layers/quantization (fp8.py, modelopt.py, mxfp4.py,
auto_awq.py, auto_gptq.py, compressed_tensors/). They are the parameters at creation; a kernel may repack
them after loading.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from estimator.model import Matrix, Quantisation
from estimator.spec import UnsupportedModel
from estimator.units import ceil_div
from estimator.weights.shard import Shard

SCALE_BYTES: Final = 4
"""A float32 scale."""
HALF_BYTES: Final = 2
"""A scale, zero or bias in the model's own dtype."""
FP8_BLOCK: Final = 128
REFINED_BLOCK_MIN: Final = 32
MX_GROUP: Final = 32
NV_GROUP: Final = 16
SchemeBytes = Callable[[Shard, int | None], int]
"""(shard, group size) -> bytes."""


def matrix_bytes(matrix: Matrix, shard: Shard, scheme: str | None, quantisation: Quantisation | None) -> int:
    """Bytes of `shard`, the piece of `matrix` on a rank; scheme None: in the matrix's own dtype.

    Raises UnsupportedModel where the rank's piece does not fit the scheme's blocks or groups.
    """
    if scheme is None or quantisation is None:
        return matrix.element_bytes * shard.elements
    try:
        return SCHEMES[scheme](shard, quantisation.group_size)
    except _DoesNotFit as error:
        raise UnsupportedModel(
            f"not yet supported: {matrix.name} in {scheme} on this many GPUs, which cuts it inside a "
            f"block of {error.block}; vLLM refuses it too: choose a smaller --tp"
        ) from None


class _DoesNotFit(Exception):  # noqa: N818  (caught in this file)
    def __init__(self, block: int) -> None:
        self.block = block


def _groups(columns: int, size: int) -> int:
    if columns % size != 0:
        raise _DoesNotFit(size)
    return columns // size


def _fp8_block(shard: Shard, group_size: int | None, *, scale_bytes: int = SCALE_BYTES) -> int:
    """One scale a square block. A rank's experts that cut blocks get finer scales (oracle/fp8.py)."""
    block = group_size or FP8_BLOCK
    if shard.is_mixture:
        sides = (*shard.rows, shard.columns)
        if shard.is_divided and any(side % block for side in sides):
            block = math.gcd(block, *sides)
            if block < REFINED_BLOCK_MIN:
                raise _DoesNotFit(FP8_BLOCK)
        scales = sum(ceil_div(rows, block) for rows in shard.rows)
    else:
        _check_blocks(shard, block)
        scales = ceil_div(sum(shard.rows), block)
    return shard.elements + scale_bytes * shard.experts * scales * ceil_div(shard.columns, block)


def _check_blocks(shard: Shard, block: int) -> None:
    """Source: validate_fp8_block_shape and linear.py _maybe_allow_fp8_block_shape_mismatch.

    Merged column-parallel matrices may be cut anywhere; of merged whole ones the last may end inside a block.
    """
    is_merged = len(shard.rows) > 1
    if shard.split == "output":
        checked = shard.rows if shard.is_divided and not is_merged else ()
    else:
        checked = shard.rows[:-1]
    if any(rows % block for rows in checked):
        raise _DoesNotFit(block)
    if shard.is_divided and shard.split == "input" and shard.columns % block:
        raise _DoesNotFit(block)


def _per_tensor(shard: Shard, group_size: int | None, *, static: bool = False) -> int:
    """8 bits an element, one scale a merged matrix, and as many for activations (one an expert)."""
    parts = len(shard.rows)
    scales = parts + ((1 if shard.is_mixture else parts) if static else 0)
    return shard.elements + SCALE_BYTES * shard.experts * scales


def _per_channel(shard: Shard, group_size: int | None) -> int:
    return shard.elements + SCALE_BYTES * shard.experts * sum(shard.rows)


def _packed(shard: Shard, group_size: int | None, *, bits: int, zeros: bool = False) -> int:
    """compressed-tensors pack-quantized: int32 words along the columns, and the shape of the matrix."""
    rows, columns = sum(shard.rows), shard.columns
    groups = _groups(columns, group_size) if group_size else 1
    one = 4 * rows * ceil_div(columns * bits, 32) + HALF_BYTES * rows * groups
    if zeros:
        one += 4 * ceil_div(rows * bits, 32) * groups
    shape_bytes = 2 * (HALF_BYTES if shard.is_mixture else 8)
    return shard.experts * (one + shape_bytes)


def _awq(shard: Shard, group_size: int | None, *, bits: int, bias: bool = False) -> int:
    """AWQ and GPTQ: packed weights, a scale and a packed zero for each group of each row.

    bias: vLLM gives GPTQ experts one whether the checkpoint has it or not.
    """
    rows = sum(shard.rows)
    if rows * bits % 32:
        raise _DoesNotFit(32 // bits)
    groups = _groups(shard.columns, group_size) if group_size else 1
    one = rows * shard.columns * bits // 8 + groups * (HALF_BYTES * rows + rows * bits // 8)
    return shard.experts * (one + (HALF_BYTES * rows if bias and shard.is_mixture else 0))


def _nvfp4(shard: Shard, group_size: int | None, *, activation_bytes: int = SCALE_BYTES) -> int:
    """4 bits, an 8-bit scale for 16 of them, one scale a merged matrix and as many for activations.

    Experts keep the activation scales even where only the weights are quantised.
    """
    sixteenths = _groups(shard.columns, NV_GROUP) * sum(shard.rows) * shard.experts
    scale = SCALE_BYTES + (SCALE_BYTES if shard.is_mixture else activation_bytes)
    return shard.elements // 2 + sixteenths + scale * len(shard.rows) * shard.experts


def _mxfp4(shard: Shard, group_size: int | None) -> int:
    return shard.elements // 2 + _groups(shard.columns, MX_GROUP) * sum(shard.rows) * shard.experts


def _mxfp8(shard: Shard, group_size: int | None) -> int:
    return shard.elements + _groups(shard.columns, MX_GROUP) * sum(shard.rows) * shard.experts


SCHEMES: Final[Mapping[str, SchemeBytes]] = {
    "fp8-block": _fp8_block,
    "fp8-block-e8m0": partial(_fp8_block, scale_bytes=1),
    "fp8-tensor": _per_tensor,
    "fp8-tensor-static": partial(_per_tensor, static=True),
    "fp8-channel": _per_channel,
    "int8-tensor": _per_tensor,
    "int8-channel": _per_channel,
    "int4-packed": partial(_packed, bits=4),
    "int4-packed-zeros": partial(_packed, bits=4, zeros=True),
    "int8-packed": partial(_packed, bits=8),
    "int8-packed-zeros": partial(_packed, bits=8, zeros=True),
    "awq-int4": partial(_awq, bits=4),
    "awq-int8": partial(_awq, bits=8),
    "gptq-int4": partial(_awq, bits=4, bias=True),
    "gptq-int8": partial(_awq, bits=8, bias=True),
    "nvfp4": _nvfp4,
    "nvfp4-a16": partial(_nvfp4, activation_bytes=0),
    "nvfp4-a16-modelopt": partial(_nvfp4, activation_bytes=HALF_BYTES),
    "mxfp4": _mxfp4,
    "mxfp8": _mxfp8,
}
"""By the names that quantisation.py gives."""
