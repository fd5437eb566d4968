"""Which attention kernels vLLM 0.32 picks, as far as they decide the block size.

Source: platforms/cuda.py _get_backend_priorities, get_supported_kernel_block_sizes of the backends under
v1/attention/backends. Several backends that accept the same blocks share a line here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from estimator.model import (
    Attention,
    Cache,
    CompressedAttention,
    IndexerKeys,
    LatentAttention,
    Layer,
    ModelSpec,
    RecurrentState,
)
from estimator.spec import GpuSpec, SpecError
from estimator.vllm_cache.formats import FP8_NAMES, generation, is_quantised, is_turboquant

DEFAULT_BLOCK_SIZE: Final = 16
"""Source: config/cache.py CacheConfig.DEFAULT_BLOCK_SIZE."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """A backend's block sizes in tokens. any_multiple: whole multiples of them run as one page, too."""

    name: str
    sizes: tuple[int, ...]
    any_multiple: bool = False

    @property
    def smallest(self) -> int:
        return min(self.sizes)

    def accepts(self, block_size: int) -> bool:
        """A manager's block may be cut into several kernel blocks, never the reverse."""
        return any(block_size % size == 0 for size in self.sizes)

    def largest_within(self, tokens: int) -> int:
        """Largest kernel block of at most `tokens`; the smallest there is when none fits.

        Source: layers/attention/attention.py _largest_kernel_block_within.
        """
        if self.any_multiple:
            return max(max(size, tokens // size * size) for size in self.sizes)
        return max((size for size in self.sizes if size <= tokens), default=self.smallest)


FLASH_ATTN: Final = Kernel(name="FLASH_ATTN", sizes=(16,), any_multiple=True)
FLASH_ATTN_FP8_512: Final = Kernel(name="FLASH_ATTN", sizes=(64,))
FLASHINFER: Final = Kernel(name="FLASHINFER", sizes=(16, 32, 64))
FLASHINFER_LARGE: Final = Kernel(name="FLASHINFER", sizes=(16, 32, 64, 128, 256, 512, 1024))
TRITON: Final = Kernel(name="TRITON_ATTN", sizes=(16,), any_multiple=True)
TRITON_FLASHINFER: Final = Kernel(name="TRITON_FLASHINFER", sizes=(64,))
TURBOQUANT: Final = Kernel(name="TURBOQUANT", sizes=(16, 32, 64, 128))
FLASH_ATTN_MLA: Final = Kernel(name="FLASH_ATTN_MLA", sizes=(16,), any_multiple=True)
FLASHMLA: Final = Kernel(name="FLASHMLA", sizes=(64,))
FLASHINFER_MLA: Final = Kernel(name="FLASHINFER_MLA", sizes=(32, 64))
TRITON_MLA: Final = Kernel(name="TRITON_MLA", sizes=(16,), any_multiple=True)
MLA_SPARSE: Final = Kernel(name="FLASHMLA_SPARSE", sizes=(64,), any_multiple=True)
FLASHINFER_MLA_SPARSE: Final = Kernel(name="FLASHINFER_MLA_SPARSE", sizes=(32,), any_multiple=True)
INDEXER: Final = Kernel(name="DEEPSEEK_V32_INDEXER", sizes=(64,))
MINIMAX_SPARSE: Final = Kernel(name="MINIMAX_M3_SPARSE", sizes=(128,))
DEEPSEEK_V4: Final = Kernel(name="FLASHMLA_SPARSE_DSV4", sizes=(256,))

FLASHINFER_HEAD_SIZES: Final = frozenset({64, 128, 256, 512})
IMAGE_PREFIX_HEAD_SIZES: Final = frozenset({256, 512})
IMAGE_PREFIX_TYPES: Final = frozenset({"bagel", "gemma3", "gemma4", "molmo2", "moondream3", "paligemma"})
"""Whose image tokens see each other. Source: transformers_utils/model_arch_config_convertor.py."""


def kernels(model: ModelSpec, gpu: GpuSpec, kv_dtype: str, drafts: Sequence[Layer]) -> tuple[Kernel, ...]:
    """Distinct kernels of the layers with attention, in the order of the layers; recurrent ones do not count.

    Source: platforms/interface.py _find_non_ssm_backends.
    """
    found: dict[Kernel, None] = {}
    for index, layer in enumerate((*model.layers, *drafts)):
        for cache in layer.caches:
            if not isinstance(cache, RecurrentState):
                found[kernel_of(model, gpu, layer, cache, stored_dtype(model, kv_dtype, index))] = None
    return tuple(found)


def stored_dtype(model: ModelSpec, kv_dtype: str, index: int) -> str:
    """The KV dtype of one layer: TurboQuant leaves the first two and the last two in the model's own.

    Source: layers/quantization/turboquant/config.py get_boundary_skip_layers (none in hybrid models).
    """
    count = len(model.layers)
    is_boundary = index < 2 or count - 2 <= index < count
    return "auto" if is_boundary and is_turboquant(kv_dtype) and not model.has_state else kv_dtype


def kernel_of(model: ModelSpec, gpu: GpuSpec, layer: Layer, cache: Cache, kv_dtype: str) -> Kernel:
    """The kernel of one cache of a layer. Raises SpecError when no backend serves it on this GPU."""
    major = generation(gpu)
    if isinstance(cache, CompressedAttention):
        return DEEPSEEK_V4
    if isinstance(cache, IndexerKeys):
        return MINIMAX_SPARSE if cache.dtype == "bfloat16" else INDEXER
    if isinstance(cache, LatentAttention):
        return _sparse_latent(gpu, kv_dtype) if cache.sparse else _latent(major, kv_dtype)
    assert isinstance(cache, Attention)
    if any(isinstance(other, IndexerKeys) for other in layer.caches):
        return MINIMAX_SPARSE
    return _dense(model, major, cache, kv_dtype)


def _dense(model: ModelSpec, major: int, cache: Attention, kv_dtype: str) -> Kernel:
    if is_turboquant(kv_dtype):
        return TURBOQUANT
    if kv_dtype.endswith("_per_token_head"):
        return TRITON
    if cache.head_size != cache.head_size_v:
        return FLASH_ATTN  # FLASH_ATTN_DIFFKV: the same blocks
    if major == 10:
        return _dense_blackwell(model, cache)
    if kv_dtype.startswith("nvfp4") or kv_dtype == "fp8_e5m2" or (kv_dtype in FP8_NAMES and major != 9):
        return FLASHINFER if cache.head_size in FLASHINFER_HEAD_SIZES else TRITON
    if major == 9 and kv_dtype in FP8_NAMES and cache.head_size == 512:
        return FLASH_ATTN_FP8_512
    return FLASH_ATTN


def _dense_blackwell(model: ModelSpec, cache: Attention) -> Kernel:
    """trtllm-gen runs pages of 128 tokens and more for grouped queries alone."""
    if sees_image_prefixes(model):
        return TRITON_FLASHINFER if cache.head_size in IMAGE_PREFIX_HEAD_SIZES else TRITON
    if cache.head_size not in FLASHINFER_HEAD_SIZES or cache.cross:
        return FLASH_ATTN
    return FLASHINFER_LARGE if model.attention_heads // cache.kv_heads > 1 else FLASHINFER


def _latent(major: int, kv_dtype: str) -> Kernel:
    if major == 10:
        return FLASHINFER_MLA
    if major == 9:
        return FLASHMLA if is_quantised(kv_dtype) else FLASH_ATTN_MLA
    return TRITON_MLA


def _sparse_latent(gpu: GpuSpec, kv_dtype: str) -> Kernel:
    major = generation(gpu)
    if major not in (9, 10, 12):
        raise SpecError(f"vLLM has no sparse latent attention for {gpu.name}; take a Hopper or Blackwell GPU")
    return FLASHINFER_MLA_SPARSE if major == 10 and is_quantised(kv_dtype) else MLA_SPARSE


def sees_image_prefixes(model: ModelSpec) -> bool:
    """Whether the model is served with images whose tokens see each other (vLLM's is_mm_prefix_lm)."""
    return family_of(model) in IMAGE_PREFIX_TYPES and "ConditionalGeneration" in model.architecture


def family_of(model: ModelSpec) -> str:
    return model.model_type.removesuffix("_text")


def common_block_size(found: Sequence[Kernel]) -> int:
    """Smallest block every kernel accepts: 16, or else a least common multiple of one size of each.

    Source: platforms/interface.py _preferred_block_size_for_backends.
    """
    if all(kernel.accepts(DEFAULT_BLOCK_SIZE) for kernel in found):
        return DEFAULT_BLOCK_SIZE
    candidates = sorted(
        {math.lcm(*sizes) for sizes in itertools.product(*(kernel.sizes for kernel in found))}
    )
    return next(size for size in candidates if all(kernel.accepts(size) for kernel in found))


def smallest_common(found: Iterable[Kernel]) -> int:
    """Least common multiple of the kernels' smallest blocks."""
    return math.lcm(*(kernel.smallest for kernel in found))
