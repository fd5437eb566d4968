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
MAX_WINDOW_LAYERS: Final = 28
"""Qwen's max_window_layers where its config.json is silent: so many layers before the first that slides."""


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
    """The window of each layer, None where it sees every token. Without kinds every layer has the window."""
    size = window(fields)
    if not kinds:
        return (size,) * layer_count(fields)
    return tuple(size if kind == SLIDING else None for kind in kinds)


def listed_windows(fields: Fields) -> tuple[int | None, ...]:
    """The windows of a class that heeds layer_types (Llama, Mistral)."""
    return windows(fields, layer_types(fields))


def asked_windows(fields: Fields) -> tuple[int | None, ...]:
    """The windows of a class that knows one window for all layers, where use_sliding_window asks for it.

    Raises UnsupportedModel for a window in some layers only, which vLLM refuses too.
    Source: vLLM 0.32 models/qwen2.py Qwen2Model, Transformers Qwen2Config.
    """
    layers = layer_count(fields)
    if not fields.flag("use_sliding_window"):
        return (None,) * layers
    first = fields.size("max_window_layers", default=MAX_WINDOW_LAYERS, least=0)
    kinds = layer_types(fields) or (FULL,) * min(first, layers) + (SLIDING,) * (layers - first)
    if len(set(kinds)) > 1 and first != layers:
        raise UnsupportedModel(
            f"not yet supported: max_window_layers {first} of {layers} layers; "
            "vLLM serves a window in all of them or in none"
        )
    return (common_window(fields, kinds),) * layers
