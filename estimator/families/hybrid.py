"""Every reader of a model with recurrent state, by architecture, and those refused by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from estimator.families import kimi_linear, lfm2, mamba, mamba_hybrids, nemotron, qwen_next, zamba
from estimator.fields import Fields
from estimator.model import ModelSpec
from estimator.spec import UnsupportedModel

TOWER: Final = "its vision tower is not counted"
REFUSED: Final[Mapping[str, str]] = {
    "BambaForCausalLM": "vLLM 0.23 was the last to serve it",
    "MiniMaxText01ForCausalLM": "vLLM 0.23 was the last to serve it",
    "MiniMaxM1ForCausalLM": "vLLM 0.23 was the last to serve it",
    "Plamo2ForCausalLM": "vLLM 0.26 was the last to serve it",
    "NemotronHPuzzleForCausalLM": "its layers differ one by one (block_configs)",
    "NemotronH_Nano_VL_V2": TOWER,
    "Lfm2VlForConditionalGeneration": TOWER,
    "OlmoHybridForCausalLM": "its gated delta net differs from Qwen's",
    "BailingMoeV3ForCausalLM": "its linear attention is not known to the byte",
    "BailingMoeV2_5ForCausalLM": "its linear attention is not known to the byte",
}
"""Why we give no number."""


def _refusing(architecture: str, reason: str) -> Callable[[Fields], ModelSpec]:
    def refuse(fields: Fields) -> ModelSpec:
        raise UnsupportedModel(f"not yet supported: {architecture}; {reason}")

    return refuse


READERS: Final[Mapping[str, Callable[[Fields], ModelSpec]]] = {
    **qwen_next.READERS,
    **nemotron.READERS,
    **kimi_linear.READERS,
    **mamba.READERS,
    **mamba_hybrids.READERS,
    **zamba.READERS,
    **lfm2.READERS,
    **{architecture: _refusing(architecture, reason) for architecture, reason in REFUSED.items()},
}
