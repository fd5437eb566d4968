"""Models whose layers differ in window, chunk or head size, by architecture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from estimator.families import (
    gemma3n,
    gemma4,
    gpt_oss,
    layered_dense,
    llama4,
    mimo_v2,
    starcoder2,
    step3p5,
    whisper,
)
from estimator.fields import Fields
from estimator.model import ModelSpec
from estimator.spec import UnsupportedModel


def _refuse_gemma3n_towers(fields: Fields) -> ModelSpec:
    """The towers come from a library of image models, which config.json does not describe."""
    raise UnsupportedModel(
        "not yet supported: Gemma3nForConditionalGeneration, whose towers config.json does not describe; "
        "its decoder alone is Gemma3nForCausalLM"
    )


READERS: Final[Mapping[str, Callable[[Fields], ModelSpec]]] = {
    **layered_dense.READERS,
    **gemma3n.READERS,
    **gemma4.READERS,
    **gpt_oss.READERS,
    **llama4.READERS,
    **mimo_v2.READERS,
    **starcoder2.READERS,
    **step3p5.READERS,
    **whisper.READERS,
    "Gemma3nForConditionalGeneration": _refuse_gemma3n_towers,
}
