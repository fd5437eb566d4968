"""What one rank of each pipeline stage holds, matrix by matrix."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from estimator.engine_spec import EngineSpec
from estimator.model import Cache, Layer, Matrix, ModelSpec
from estimator.pipeline import pipeline_stages
from estimator.spec import SpecError
from estimator.weights.ends import outside_layers
from estimator.weights.formats import matrix_bytes
from estimator.weights.schemes import scheme_of
from estimator.weights.shard import rounded, shard_of

HOPPER: Final = (9, 0)
MX_HIDDEN: Final[Mapping[int, int]] = {9: 128}
MX_HIDDEN_ELSEWHERE: Final = 256
"""Multiples of the hidden size that MXFP4 experts are padded to: FlashInfer's CUTLASS kernel on Hopper, its
TRT-LLM kernel and Marlin elsewhere. By major compute capability."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """The matrices of a layer, or of what is outside all layers, under their prefix in the checkpoint."""

    prefix: str
    matrices: tuple[Matrix, ...]
    caches: tuple[Cache, ...] = ()
    is_draft: bool = False


def stages(model: ModelSpec, engine: EngineSpec) -> tuple[tuple[Held, ...], ...]:
    """What each pipeline stage holds: the embedding first, the head and draft layers last.

    Draft layers are loaded for multi-token prediction alone. Raises SpecError when pp exceeds the layers.
    """
    pieces = pipeline_stages(len(model.layers), engine.pp)
    drafts = model.draft_layers if engine.speculative and engine.speculative.method == "mtp" else ()
    found: list[tuple[Held, ...]] = []
    for number, indices in enumerate(pieces):
        is_last = number == len(pieces) - 1
        held = [
            Held(prefix="", matrices=outside_layers(model, is_first=number == 0, is_last=is_last)),
        ]
        held += _layers((model.layers[index] for index in indices), indices.start)
        if is_last:
            held += [replace(one, is_draft=True) for one in _layers(drafts, len(model.layers))]
        found.append(tuple(held))
    return tuple(found)


def _layers(layers: Iterable[Layer], first: int) -> list[Held]:
    return [
        Held(prefix=f"layers.{index}.", matrices=layer.matrices, caches=layer.caches)
        for index, layer in enumerate(layers, start=first)
    ]


class RankBytes:
    """Bytes of matrices on one rank, each kind counted once.

    compute_capability: the GPU's. Raises SpecError when tp does not divide the model.
    """

    def __init__(
        self, model: ModelSpec, engine: EngineSpec, compute_capability: tuple[int, int] | None
    ) -> None:
        if model.attention_heads % engine.tp != 0:
            raise SpecError(
                f"--tp {engine.tp} does not divide the model's {model.attention_heads} attention heads; "
                "choose a divisor"
            )
        self._quantisation = model.quantisation
        self._engine = engine
        self._hidden_multiple = MX_HIDDEN.get((compute_capability or (0, 0))[0], MX_HIDDEN_ELSEWHERE)
        self._seen: dict[tuple[int, str | None, str | None], int] = {}
        self.scheme_of = scheme_of(model.quantisation)

    def on_rank(self, prefix: str, matrix: Matrix) -> int:
        """Bytes of the largest piece of `matrix` that a rank holds, its scales included."""
        experts_scheme = self.scheme_of.module(prefix, matrix) if matrix.experts > 1 else None
        # by identity, because alike layers share their matrices and hashing one costs more than counting it
        key = id(matrix), self.scheme_of(prefix, matrix), experts_scheme
        if key not in self._seen:
            shard = shard_of(matrix, self._engine.tp, expert_parallel=self._engine.enable_expert_parallel)
            if experts_scheme == "mxfp4":
                shard = rounded(shard, self._hidden_multiple)
            self._seen[key] = matrix_bytes(matrix, shard, key[1], self._quantisation)
        return self._seen[key]

    def whole(self, prefix: str, matrix: Matrix) -> int:
        """Bytes of all of `matrix` as a checkpoint stores it: undivided and without padding."""
        unpadded = replace(matrix, pad_rows=1)
        return matrix_bytes(matrix, shard_of(unpadded, 1), self.scheme_of(prefix, matrix), self._quantisation)
