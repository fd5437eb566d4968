"""Which layers of a model see a window and which see every token, by the rules that vLLM follows.

Source: vLLM 0.32 engine/arg_utils.py create_engine_config (the window of layers that name none),
layers/attention/attention.py Attention, and the config classes of Transformers that fill in layer_types.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from estimator.families.common import layer_count
from estimator.fields import Fields, shown
from estimator.spec import SpecError, UnsupportedModel

FULL: Final = "full_attention"
SLIDING: Final = "sliding_attention"
CHUNKED: Final = "chunked_attention"
KNOWN: Final = (FULL, SLIDING)


def with_defaults(fields: Fields, defaults: Mapping[str, Any]) -> Fields:
    """The fields with what a model's Transformers config class puts where config.json has no such key."""
    return replace(fields, values={**defaults, **fields.values})


def layer_types(fields: Fields, known: Sequence[str] = KNOWN) -> tuple[str, ...]:
    """One kind a layer, as the key layer_types says; empty where it is absent.

    Raises SpecError for a list of another length, UnsupportedModel for a kind not in `known`.
    """
    kinds, layers = fields.words("layer_types"), layer_count(fields)
    if not kinds:
        return ()
    if len(kinds) != layers:
        raise SpecError(f"layer_types must name one kind for each of {layers} layers, got {len(kinds)}")
    for kind in kinds:
        if kind not in known:
            raise UnsupportedModel(
                f"not yet supported: layer_types of kind {shown(kind)}; known are {', '.join(known)}"
            )
    return kinds


def every(period: int, layers: int) -> tuple[str, ...]:
    """Sliding layers of which every `period`-th is full; 0: all are full."""
    return tuple(SLIDING if period and (index + 1) % period else FULL for index in range(layers))


def window(fields: Fields, *keys: str) -> int | None:
    """Tokens that a sliding layer sees; vLLM reads 0 as no window."""
    return fields.size(*(keys or ("sliding_window",)), default=0, least=0) or None


def common_window(fields: Fields, kinds: Sequence[str]) -> int | None:
    """The window of layers whose class names none: that of a config all of whose layers slide."""
    return window(fields) if all(kind == SLIDING for kind in kinds) else None


def windows(fields: Fields, kinds: Sequence[str]) -> tuple[int | None, ...]:
    """The window of each layer, None where it sees every token. Without kinds every layer has the window.

    Raises SpecError for sliding layers without a size of their window.
    """
    size = window(fields)
    if not kinds:
        return (size,) * layer_count(fields)
    return tuple(size if kind == SLIDING else None for kind in kinds)
