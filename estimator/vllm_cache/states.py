"""The bytes of one recurrent state on one rank, mixer by mixer.

Source: vLLM 0.32 model_executor/layers/mamba/mamba_utils.py MambaStateShapeCalculator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from estimator.engine_spec import EngineSpec
from estimator.model import DTYPE_BYTES, Mixer, ModelSpec, RecurrentState
from estimator.spec import SpecError

KDA_DTYPES: Final = ("auto", "float32", "bfloat16")


def state_bytes(model: ModelSpec, engine: EngineSpec, state: RecurrentState) -> int:
    """Bytes of one state: the convolution's last taps and the recurrent matrix of each head.

    Speculation keeps the taps of every guessed token. Raises SpecError where --tp does not divide it.
    """
    guessed = engine.speculative.num_speculative_tokens if engine.speculative else 0
    taps = state.conv_kernel - 1 + (0 if state.mixer == "mamba1" else guessed)
    rows = _share(model, CONV_ROWS[state.mixer](state, engine.tp), engine.tp)
    element_bytes = DTYPE_BYTES[model.dtype]
    recurrent = STATE_ELEMENTS[state.mixer](state) * _share(model, state.heads, engine.tp)
    return rows * taps * element_bytes + recurrent * _recurrent_bytes(model, engine, state)


def _conv_inner(state: RecurrentState, tp: int) -> int:
    return state.heads * state.head_size


def _conv_grouped(state: RecurrentState, tp: int) -> int:
    """B and C beside the inner rows; groups that --tp does not divide are padded up to one a rank."""
    groups = state.groups if state.groups % tp == 0 else tp
    return state.heads * state.head_size + 2 * groups * state.state_size


def _conv_keys(state: RecurrentState, tp: int) -> int:
    """Queries and keys beside the values."""
    return state.heads * state.head_size + 2 * state.groups * state.state_size


def _matrix(state: RecurrentState) -> int:
    return state.head_size * state.state_size


def _square(state: RecurrentState) -> int:
    return state.head_size * state.head_size


def _none(state: RecurrentState) -> int:
    return 0


CONV_ROWS: Final[Mapping[Mixer, Callable[[RecurrentState, int], int]]] = {
    "mamba1": _conv_inner,
    "mamba2": _conv_grouped,
    "gdn": _conv_keys,
    "kda": _conv_keys,
    "short_conv": _conv_inner,
}
STATE_ELEMENTS: Final[Mapping[Mixer, Callable[[RecurrentState], int]]] = {
    "mamba1": _matrix,
    "mamba2": _matrix,
    "gdn": _matrix,
    "kda": _square,
    "short_conv": _none,
}


def _recurrent_bytes(model: ModelSpec, engine: EngineSpec, state: RecurrentState) -> int:
    asked = engine.mamba_ssm_cache_dtype
    known = KDA_DTYPES if state.mixer == "kda" else ("auto", "float32", "bfloat16", "float16")
    if asked not in known:
        raise SpecError(
            f"--mamba-ssm-cache-dtype {asked!r} is not known for {model.name}; use one of {', '.join(known)}"
        )
    chosen = state.state_dtype if asked == "auto" else asked
    return DTYPE_BYTES[model.dtype if chosen == "auto" else chosen]


def _share(model: ModelSpec, count: int, tp: int) -> int:
    if count % tp != 0:
        raise SpecError(
            f"--tp {tp} does not divide the recurrent layers of {model.name}; choose a smaller one"
        )
    return count // tp
