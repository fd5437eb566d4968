"""How vLLM 0.32 stores keys, values and latents: the bytes of one head of one token, by --kv-cache-dtype."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from estimator.engine_spec import EngineSpec
from estimator.model import DTYPE_BYTES, CompressedAttention, LatentAttention, ModelSpec
from estimator.spec import GpuSpec, SpecError
from estimator.units import ceil_div

SCALE_BYTES: Final = 4
"""One float32 scale for each head's K and V of a token (v1/attention/backends/triton_attn.py)."""
DS_MLA_BYTES: Final[Mapping[str, int]] = {"fp8_ds_mla": 656, "nvfp4_ds_mla": 352}
"""A token's packed latent, scales and rotary part. Source: mla_attention.py get_kv_cache_spec."""
FP8_NAMES: Final = frozenset({"fp8", "fp8_e4m3", "fp8_e5m2", "fp8_inc"})
FP8_ON_BLACKWELL: Final = frozenset({"GlmMoeDsaForCausalLM"})
"""Architectures whose "auto" is fp8 there. Source: model_executor/models/config.py."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KvFormat:
    """One value of --kv-cache-dtype: bits of an element and what is stored with each head of a token."""

    words: str
    key_bits: int
    value_bits: int
    key_extra_bytes: int = 0
    value_extra_bytes: int = 0
    elements_per_scale: int | None = None
    """Elements that share a scale of one byte."""
    even: bool = False
    """The sum of K and V is rounded up to an even number of bytes."""

    def head_bytes(self, head_size: int, head_size_v: int) -> int:
        """Bytes of K and V of one head of one token."""
        packed_bytes = (
            ceil_div(head_size * self.key_bits, 8)
            + self.key_extra_bytes
            + ceil_div(head_size_v * self.value_bits, 8)
            + self.value_extra_bytes
        )
        if self.elements_per_scale is not None:
            packed_bytes += (head_size + head_size_v) // self.elements_per_scale
        return packed_bytes + packed_bytes % 2 if self.even else packed_bytes


def _plain(bits: int, words: str, scale_bytes: int = 0) -> KvFormat:
    return KvFormat(
        key_bits=bits,
        value_bits=bits,
        key_extra_bytes=scale_bytes,
        value_extra_bytes=scale_bytes,
        words=words,
    )


def _turboquant(key_bits: int, value_bits: int) -> KvFormat:
    """Source: layers/quantization/turboquant/config.py: a norm with K, scale and zero with V, float16."""
    return KvFormat(
        key_bits=key_bits,
        value_bits=value_bits,
        key_extra_bytes=0 if key_bits == 8 else 2,
        value_extra_bytes=4,
        even=True,
        words=f"{key_bits}-bit keys and {value_bits}-bit values",
    )


FORMATS: Final[Mapping[str, KvFormat]] = {
    "float32": _plain(32, "float32"),
    "bfloat16": _plain(16, "bfloat16"),
    "float16": _plain(16, "float16"),
    **{name: _plain(8, "fp8") for name in sorted(FP8_NAMES)},
    "fp8_per_token_head": _plain(8, "fp8 and scales", SCALE_BYTES),
    "int8_per_token_head": _plain(8, "int8 and scales", SCALE_BYTES),
    "int4_per_token_head": _plain(4, "int4 and scales", SCALE_BYTES),
    "turboquant_k8v4": _turboquant(8, 4),
    "turboquant_4bit_nc": _turboquant(4, 4),
    "turboquant_k3v4_nc": _turboquant(3, 4),
    "turboquant_3bit_nc": _turboquant(3, 3),
    # Source: utils/torch_utils.py nvfp4_kv_cache_full_dim.
    "nvfp4": KvFormat(words="nvfp4", key_bits=4, value_bits=4, elements_per_scale=16),
    "nvfp4_4over6": KvFormat(words="nvfp4", key_bits=4, value_bits=4, elements_per_scale=16),
}
LATENT_FORMATS: Final = frozenset({"auto", "bfloat16", "float16", *FP8_NAMES, *DS_MLA_BYTES})


def generation(gpu: GpuSpec) -> int:
    """Major compute capability: 8 Ampere and Ada, 9 Hopper, 10 and 12 Blackwell. SpecError for others."""
    if gpu.compute_capability is None:
        raise SpecError(
            f"{gpu.name}: which attention kernels vLLM picks there, and so its block size, is not known; "
            "name an NVIDIA GPU"
        )
    return gpu.compute_capability[0]


def is_turboquant(kv_dtype: str) -> bool:
    return kv_dtype.startswith("turboquant_")


def is_quantised(kv_dtype: str) -> bool:
    return kv_dtype not in ("auto", "float32", "bfloat16", "float16")


def kv_dtype_of(model: ModelSpec, gpu: GpuSpec, engine: EngineSpec) -> str:
    """--kv-cache-dtype with "auto" resolved: by the checkpoint, by the architecture, by the kernel.

    Source: utils/torch_utils.py resolve_kv_cache_dtype_string, models/config.py, mla_attention.py
    _canonicalize_sparse_mla_kv_cache_dtype. Raises SpecError for a format the model's attention cannot use.
    """
    asked = engine.kv_cache_dtype
    _require_known(model, asked)
    stored = (
        (model.quantisation and model.quantisation.kv_cache_dtype) or "auto" if asked == "auto" else asked
    )
    major = generation(gpu)
    if stored == "auto" and model.architecture in FP8_ON_BLACKWELL and major == 10:
        stored = "fp8_e4m3"
    if not _is_sparse(model):
        return stored
    if major == 12 and stored in ("auto", "fp8", "fp8_e4m3"):
        return "fp8_ds_mla"  # its one sparse kernel reads nothing else
    if major != 10 and is_quantised(stored) and stored != "nvfp4_ds_mla":
        return "fp8_ds_mla"
    return stored


def _is_sparse(model: ModelSpec) -> bool:
    return any(isinstance(cache, LatentAttention) and cache.sparse for cache in model.caches)


def _require_known(model: ModelSpec, kv_dtype: str) -> None:
    if kv_dtype != "auto" and kv_dtype not in FORMATS and kv_dtype not in DS_MLA_BYTES:
        known = ", ".join(("auto", *sorted(set(FORMATS) - {"float32"}), *DS_MLA_BYTES))
        raise SpecError(f"--kv-cache-dtype {kv_dtype!r} is not known; use one of {known}")
    if model.is_latent and kv_dtype not in LATENT_FORMATS:
        raise SpecError(
            f"--kv-cache-dtype {kv_dtype} does not apply to the latent attention of {model.name}; use fp8"
        )
    if not model.is_latent and kv_dtype in DS_MLA_BYTES:
        raise SpecError(f"--kv-cache-dtype {kv_dtype} is for latent attention only; use fp8")


def format_of(model: ModelSpec, kv_dtype: str) -> KvFormat:
    """The format of ordinary K and V; "auto" is the model's own dtype."""
    return FORMATS[model.dtype if kv_dtype == "auto" else kv_dtype]


def latent_bytes(model: ModelSpec, kv_dtype: str, latent_size: int) -> int:
    """Bytes of one token's latent and rotary part."""
    if kv_dtype in DS_MLA_BYTES:
        return DS_MLA_BYTES[kv_dtype]
    return latent_size * (1 if kv_dtype in FP8_NAMES else DTYPE_BYTES[model.dtype])


def indexer_bytes(head_size: int) -> int:
    """fp8 and a float32 scale for every 128 elements. Source: models/deepseek_v2.py Indexer."""
    return head_size + head_size // 128 * 4


def stored_as(model: ModelSpec, kv_dtype: str) -> str:
    """How K and V are stored, for a reader."""
    if any(isinstance(cache, CompressedAttention) for cache in model.caches):
        return "fp8 latents with a 16-bit rotary part"
    if kv_dtype in DS_MLA_BYTES:
        return f"{kv_dtype.split('_')[0]} latents with a 16-bit rotary part"
    return format_of(model, kv_dtype).words
