"""What one tensor-parallel rank keeps of a matrix."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from estimator.model import Matrix, Part, Split
from estimator.spec import SpecError, heads_on_rank
from estimator.units import ceil_div

MX_INTERMEDIATE: Final = 128
"""MXFP4 kernels take expert widths in multiples of this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A rank's piece: the rows of each merged projection x columns, times experts."""

    rows: tuple[int, ...]
    columns: int
    experts: int
    split: Split
    is_divided: bool
    """Whether tensor parallelism cut it."""
    is_mixture: bool
    """A matrix of routed experts, whose scales the engine keeps per expert."""

    @property
    def elements(self) -> int:
        return sum(self.rows) * self.columns * self.experts


def shard_of(matrix: Matrix, tp: int, *, expert_parallel: bool = False) -> Shard:
    """The largest piece of `matrix` on one of tp ranks.

    Source: vLLM 0.32 layers/linear.py, vocab_parallel_embedding.py, fused_moe/config.py (with expert
    parallelism the experts are dealt out to all tp ranks and each is kept whole), models/vision.py
    is_vit_use_data_parallel. Raises SpecError when tp does not divide what it must.
    """
    is_mixture = matrix.experts > 1
    is_dealt = is_mixture and expert_parallel
    is_whole = tp == 1 or is_dealt or _stays_whole(matrix, tp)
    rows, columns = _divided(matrix, 1 if is_whole else tp)
    return Shard(
        rows=rows,
        columns=columns,
        experts=ceil_div(matrix.experts, tp) if is_dealt else matrix.experts,
        split=matrix.split,
        is_divided=not is_whole,
        is_mixture=is_mixture,
    )


def _stays_whole(matrix: Matrix, tp: int) -> bool:
    """A vision tower whose heads tp does not divide runs whole on every rank."""
    return matrix.split == "none" or (matrix.heads is not None and matrix.heads % tp != 0)


def rounded(shard: Shard, hidden_multiple: int) -> Shard:
    """Experts as the MXFP4 kernels lay them out: both sides rounded up; a bias has one column.

    Source: vLLM 0.32 fused_moe/oracle/mxfp4.py mxfp4_round_up_hidden_size_and_intermediate_size.
    """
    is_upward = shard.split == "output"
    row_multiple = MX_INTERMEDIATE if is_upward else hidden_multiple
    column_multiple = hidden_multiple if is_upward else MX_INTERMEDIATE
    return replace(
        shard,
        rows=tuple(_round_up(rows, row_multiple) for rows in shard.rows),
        columns=_round_up(shard.columns, column_multiple) if shard.columns > 1 else 1,
    )


def _round_up(size: int, multiple: int) -> int:
    return ceil_div(size, multiple) * multiple


def _divided(matrix: Matrix, tp: int) -> tuple[tuple[int, ...], int]:
    if matrix.split == "input":
        return tuple(part.rows for part in matrix.parts), _share(matrix.columns, tp, matrix.name)
    if matrix.pad_rows > 1:
        return (_share(_round_up(matrix.rows, matrix.pad_rows), tp, matrix.name),), matrix.columns
    rows = tuple(_part_rows(part, tp, matrix.name) for part in matrix.parts)
    padding = -sum(rows) % matrix.rank_multiple
    return ((*rows, padding) if padding else rows), matrix.columns


def _part_rows(part: Part, tp: int, name: str) -> int:
    if part.kv_heads is None:
        return _share(part.rows, tp, name)
    return part.rows // part.kv_heads * heads_on_rank(part.kv_heads, tp)


def _share(size: int, tp: int, name: str) -> int:
    if size % tp != 0:
        raise SpecError(f"--tp {tp} does not divide the {size} rows or columns of {name}; choose a divisor")
    return size // tp
