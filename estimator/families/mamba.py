"""Models of Mamba layers alone: Mamba, Falcon-Mamba and Mamba2.

Source: vLLM 0.32 model_executor/models/{mamba,mamba2}.py, transformers' configuration classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from estimator.families.common import Body, assemble, layer_count
from estimator.families.mixers import Mamba1, Mamba2, Mixer, mamba1, mamba2, time_step_rank, with_defaults
from estimator.families.parts import norm
from estimator.fields import Fields
from estimator.model import Layer, ModelSpec
from estimator.spec import SpecError

COMMON: Final[Mapping[str, Any]] = {
    "conv_kernel": 4,
    "expand": 2,
    "use_bias": False,
    "use_conv_bias": True,
    "max_position_embeddings": 2048,
}
"""max_position_embeddings: what vLLM serves where a config names no length (config/model.py)."""
MAMBA1: Final[Mapping[str, Any]] = {**COMMON, "state_size": 16, "tie_word_embeddings": True}
MAMBA2: Final[Mapping[str, Any]] = {
    **COMMON,
    "state_size": 128,
    "n_groups": 8,
    "num_heads": 128,
    "head_dim": 64,
}


def read_mamba(fields: Fields) -> ModelSpec:
    """Mamba and Falcon-Mamba, whose norms of dt, B and C hold no weights."""
    fields = with_defaults(fields, MAMBA1)
    hidden = fields.size("hidden_size")
    sizes = Mamba1(
        inner=int(hidden * fields.number("expand", least=1, most=64)),
        state_size=fields.size("state_size"),
        conv_kernel=fields.size("conv_kernel", least=2, most=1024),
        time_step_rank=time_step_rank(fields, "time_step_rank"),
        conv_bias=fields.flag("use_conv_bias"),
        bias=fields.flag("use_bias"),
    )
    return _read(fields, mamba1(hidden, sizes), sizes.inner)


def read_mamba2(fields: Fields) -> ModelSpec:
    """Raises SpecError when the heads do not make up the inner size."""
    fields = with_defaults(fields, MAMBA2)
    hidden, heads, head_size = (fields.size(key) for key in ("hidden_size", "num_heads", "head_dim"))
    inner = int(hidden * fields.number("expand", least=1, most=64))
    if inner != heads * head_size:
        raise SpecError(f"num_heads {heads} x head_dim {head_size} must be expand x hidden_size, {inner}")
    sizes = Mamba2(
        heads=heads,
        head_size=head_size,
        groups=fields.size("n_groups"),
        state_size=fields.size("state_size"),
        conv_kernel=fields.size("conv_kernel", least=2, most=1024),
        conv_bias=fields.flag("use_conv_bias"),
        bias=fields.flag("use_bias"),
    )
    return _read(fields, mamba2(hidden, sizes), inner)


def _read(fields: Fields, mixer: Mixer, inner: int) -> ModelSpec:
    layer = Layer(caches=(mixer.state,), matrices=(*mixer.matrices, norm("norm", fields.size("hidden_size"))))
    return assemble(
        fields,
        Body(layers=(layer,) * layer_count(fields), intermediate_size=inner, attention_heads=0),
    )


READERS: Final[Mapping[str, Callable[[Fields], ModelSpec]]] = {
    "MambaForCausalLM": read_mamba,
    "FalconMambaForCausalLM": read_mamba,
    "Mamba2ForCausalLM": read_mamba2,
}
