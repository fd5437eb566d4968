"""Bytes of one token's keys and values, and of one sequence's recurrent state, as LMDeploy stores them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from estimator.engine_spec import EngineSpec
from estimator.model import Attention, LatentAttention, ModelSpec, RecurrentState
from estimator.spec import SpecError, UnsupportedModel

HALF_BYTES: Final = 2
"""An element that is not quantised, a scale or a zero: LMDeploy computes in float16 or bfloat16."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KvFormat:
    """Bits of a stored element, and bytes of scales beside each head's row of one token."""

    words: str
    key_bits: int
    value_bits: int
    key_scale_bytes: int = 0
    value_scale_bytes: int = 0

    def key_bytes(self, elements: int) -> int:
        return elements * self.key_bits // 8 + self.key_scale_bytes

    def value_bytes(self, elements: int) -> int:
        return elements * self.value_bits // 8 + self.value_scale_bytes


PLAIN_KV: Final = KvFormat(words="16 bits", key_bits=16, value_bits=16)
INT8: Final = KvFormat(
    words="int8 and scales", key_bits=8, value_bits=8, key_scale_bytes=4, value_scale_bytes=4
)
INT4: Final = KvFormat(
    words="int4 and scales", key_bits=4, value_bits=4, key_scale_bytes=4, value_scale_bytes=4
)
TURBO_QUANT: Final = KvFormat(
    words="4-bit keys, 2-bit values and scales",
    key_bits=4,
    value_bits=2,
    key_scale_bytes=4,
    value_scale_bytes=2,
)
TURBOMIND_FORMATS: Final[Mapping[str, KvFormat]] = {
    "auto": PLAIN_KV,
    "bfloat16": PLAIN_KV,
    "float16": PLAIN_KV,
    "int8": INT8,
    "int4": INT4,
}
"""--kv-cache-dtype; int8 and int4 keep a scale and a zero in 16 bits for each row of K and of V."""
PYTORCH_FORMATS: Final[Mapping[str, KvFormat]] = {
    **TURBOMIND_FORMATS,
    "fp8": KvFormat(words="fp8", key_bits=8, value_bits=8),
    "fp8_e4m3": KvFormat(words="fp8", key_bits=8, value_bits=8),
    "fp8_e5m2": KvFormat(words="fp8_e5m2", key_bits=8, value_bits=8),
    "turbo_quant": TURBO_QUANT,
}
QUANT_POLICY: Final[Mapping[int, str]] = {0: "auto", 4: "int4", 8: "int8"}


def kv_format(engine: EngineSpec, formats: Mapping[str, KvFormat], name: str) -> KvFormat:
    """What --quant-policy or --kv-cache-dtype asks for.

    Raises SpecError when they disagree or the engine called `name` does not store it. A checkpoint's own word
    on its KV cache counts for nothing: LMDeploy reads none.
    """
    asked = engine.kv_cache_dtype
    policy = QUANT_POLICY[engine.quant_policy]
    if engine.quant_policy and asked not in ("auto", policy):
        raise SpecError(
            f"--quant-policy {engine.quant_policy} means {policy} but --kv-cache-dtype is {asked}; give one"
        )
    stored = formats.get(policy if engine.quant_policy else asked)
    if stored is None:
        raise SpecError(
            f"--kv-cache-dtype {asked} with LMDeploy: {name} does not store it; "
            f"use one of {', '.join(formats)}"
        )
    return stored


def attention_of(model: ModelSpec) -> tuple[Attention | LatentAttention, ...]:
    """The attention layers that are paged, one entry a layer.

    Raises UnsupportedModel for encoder-decoder, compressed attention and models with none.
    """
    layers = tuple(cache for cache in model.caches if isinstance(cache, Attention | LatentAttention))
    unknown = next(
        (
            type(cache).__name__
            for cache in model.caches
            if type(cache).__name__ == "CompressedAttention" or (isinstance(cache, Attention) and cache.cross)
        ),
        None,
    )
    if unknown is not None or not layers:
        raise UnsupportedModel(f"not yet supported with LMDeploy: the caches of {model.architecture}")
    return layers


def kv_heads_on_rank(kv_heads: int, tp: int) -> int:
    """KV heads of one rank: divided while they last, then replicated.

    Source: turbomind/builders/attention.py (_repeat_kv_heads), pytorch/configurations/builder.py
    (update_num_kv_heads). Raises SpecError where LMDeploy stops.
    """
    if max(tp, kv_heads) % min(tp, kv_heads) != 0:
        raise SpecError(
            f"--tp {tp} and the model's {kv_heads} KV heads do not divide each other; choose --tp"
        )
    return max(1, kv_heads // tp)


@dataclass(frozen=True, slots=True, kw_only=True)
class StateParts:
    """What one sequence keeps instead of keys and values, on one rank, in bytes."""

    layers: int
    recurrent_layer_bytes: int
    conv_bytes: int
    """Of all layers together."""

    @property
    def recurrent_bytes(self) -> int:
        return self.layers * self.recurrent_layer_bytes


def state_parts(model: ModelSpec, engine: EngineSpec) -> StateParts | None:
    """The gated-delta-net states; None for a model without. Raises for other recurrences and odd --tp.

    The convolution keeps all its taps, not one less as vLLM does. Both states are in the model's 16 bits
    unless LMDEPLOY_FP32_MAMBA_SSM_DTYPE (here --mamba-ssm-cache-dtype float32) widens the recurrent one.
    Source: pytorch/configurations/qwen3_5.py, GatedDeltaNetLayer.cc (get_lc_state_size).
    """
    states = tuple(cache for cache in model.caches if isinstance(cache, RecurrentState))
    if not states:
        return None
    first = states[0]
    if any(state != first for state in states) or first.mixer != "gdn":
        raise UnsupportedModel(f"not yet supported with LMDeploy: {first.mixer} layers; it serves gdn alone")
    if first.heads % engine.tp or first.groups % engine.tp:
        raise SpecError(f"--tp {engine.tp} does not divide the model's {first.groups} linear-attention heads")
    conv_rows = (2 * first.groups * first.state_size + first.heads * first.head_size) // engine.tp
    cells = first.heads // engine.tp * first.head_size * first.state_size
    return StateParts(
        layers=len(states),
        recurrent_layer_bytes=cells * _state_element_bytes(model, engine),
        conv_bytes=len(states) * conv_rows * first.conv_kernel * HALF_BYTES,
    )


def _state_element_bytes(model: ModelSpec, engine: EngineSpec) -> int:
    if engine.mamba_ssm_cache_dtype != "float32":
        return HALF_BYTES
    if model.architecture == "Qwen3NextForCausalLM":
        raise SpecError("--mamba-ssm-cache-dtype float32: LMDeploy keeps Qwen3-Next's states in 16 bits")
    return 4
