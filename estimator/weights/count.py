"""Bytes of weights on one rank of each pipeline stage: from safetensors headers, by arithmetic without.

Source of the arithmetic: the parameters of vLLM 0.32's own model classes as they are created, before
process_weights_after_loading repacks them (tests/estimator/weights).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from estimator.engine_spec import EngineSpec
from estimator.model import ModelSpec
from estimator.spec import SpecError
from estimator.units import format_bytes
from estimator.weights.headers import Tensor, read_folder, stored_bytes
from estimator.weights.kv_scales import SCALE_BUFFERS_BYTES, SCALED, scale_bytes
from estimator.weights.rank import HOPPER, RankBytes, stages

ARITHMETIC: Final = "arithmetic from config.json"
ROPE_ELEMENT_BYTES: Final = 2
DISAGREEMENT_MAX: Final = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Bytes of parameters one rank keeps, and which way they were found."""

    size_bytes: int
    source: str
    draft_bytes: int = 0
    """Of the checkpoint's own draft layers, where speculative decoding loads them; not in size_bytes."""


def weights_on_rank(
    model: ModelSpec,
    engine: EngineSpec,
    folder: Path | None = None,
    *,
    compute_capability: tuple[int, int] | None = HOPPER,
) -> tuple[Weights, ...]:
    """One entry a pipeline stage: from the folder's *.safetensors headers when it has any, else arithmetic.

    compute_capability: the GPU's; the kernels for MXFP4 experts pad differently. Raises SpecError when the
    flags do not divide the model, or the headers do not hold what config.json describes.
    """
    files = sorted(folder.glob("*.safetensors")) if folder is not None else []
    if files:
        return weights_of_tensors(
            model,
            engine,
            read_folder(files),
            source=f"headers of {len(files)} safetensors file(s)",
            compute_capability=compute_capability,
        )
    return _apart(
        model, engine, compute_capability, stage_bytes(model, engine, compute_capability), ARITHMETIC
    )


def weights_of_tensors(
    model: ModelSpec,
    engine: EngineSpec,
    tensors: dict[str, Tensor],
    *,
    source: str,
    compute_capability: tuple[int, int] | None = HOPPER,
) -> tuple[Weights, ...]:
    """The same from the tensors of a checkpoint, wherever their headers were read.

    Raises SpecError when they do not hold what config.json describes.
    """
    computed = stage_bytes(model, engine, compute_capability)
    found = stored_bytes(model, engine, tensors, compute_capability)
    for ours, theirs in zip(computed, found, strict=True):
        if abs(theirs - ours) > DISAGREEMENT_MAX * ours:
            raise SpecError(
                f"the *.safetensors beside config.json hold {format_bytes(theirs)} for a rank of this model "
                f"and the config describes {format_bytes(ours)}: finish the download; keep one model a folder"
            )
    return _apart(model, engine, compute_capability, found, source)


def _apart(
    model: ModelSpec,
    engine: EngineSpec,
    compute_capability: tuple[int, int] | None,
    sizes: tuple[int, ...],
    source: str,
) -> tuple[Weights, ...]:
    """Each stage's bytes, those of draft layers by themselves: they are counted by arithmetic."""
    if engine.speculative is None:
        return tuple(Weights(size_bytes=size, source=source) for size in sizes)
    whole = stage_bytes(model, engine, compute_capability)
    target = stage_bytes(model, replace(engine, speculative=None), compute_capability)
    drafts = (with_draft - without for with_draft, without in zip(whole, target, strict=True))
    return tuple(
        Weights(size_bytes=size - draft, source=source, draft_bytes=draft)
        for size, draft in zip(sizes, drafts, strict=True)
    )


def stage_bytes(
    model: ModelSpec, engine: EngineSpec, compute_capability: tuple[int, int] | None = HOPPER
) -> tuple[int, ...]:
    """Bytes of all parameters on a rank, stage by stage. Raises SpecError when tp or pp do not divide."""
    rank = RankBytes(model, engine, compute_capability)
    return tuple(
        sum(
            scale_bytes(held.caches, model.quantisation)
            + sum(rank.on_rank(held.prefix, matrix) for matrix in held.matrices)
            for held in stage
        )
        for stage in stages(model, engine)
    )


def buffer_bytes(model: ModelSpec) -> int:
    """The rotary table (cos and sin for every position) and the KV scales that every attention has."""
    attentions = sum(isinstance(cached, SCALED) for cached in model.caches)
    return ROPE_ELEMENT_BYTES * model.rope_elements + SCALE_BUFFERS_BYTES * attentions
