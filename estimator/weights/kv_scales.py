"""The scalars beside every attention layer by which its KV cache may be quantised, used or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from estimator.model import Attention, Cache, LatentAttention, Quantisation

SCALE_BUFFERS_BYTES: Final = 16
"""Four float32 scales that each attention layer has as buffers (attention.py, mla_attention.py)."""
SCALED: Final = (Attention, LatentAttention)
_FOUR_HALVES: Final = 4 * 2
_COMPRESSED: Final = 3 * 4 + 3 * 2
PARAMETER_BYTES: Final[Mapping[str, tuple[type[Cache] | tuple[type[Cache], ...], int]]] = {
    "fp8": (Attention, _FOUR_HALVES),
    "deepseek_v4_fp8": (Attention, _FOUR_HALVES),
    "modelopt": (SCALED, _FOUR_HALVES),
    "modelopt_mixed": (Attention, _FOUR_HALVES),
    "compressed-tensors": (Attention, _COMPRESSED),
}
"""By method: which attention layers get scale parameters, and their bytes.

Source: get_quant_method of each config in vLLM 0.32 layers/quantization; kv_cache.py makes four scalars in
the model's dtype, compressed_tensors.py three float32 scales and three zeros in the model's dtype.
"""


def scale_bytes(caches: Sequence[Cache], quantisation: Quantisation | None) -> int:
    """Bytes of the scale parameters of one layer with these caches."""
    if quantisation is None or quantisation.method not in PARAMETER_BYTES:
        return 0
    if quantisation.method == "modelopt_mixed" and quantisation.kv_cache_dtype is None:
        return 0
    kinds, one_bytes = PARAMETER_BYTES[quantisation.method]
    return one_bytes * sum(isinstance(cache, kinds) for cache in caches)
