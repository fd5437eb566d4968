"""What LMDeploy 0.18 assumes when a flag is not given, and which flags of vLLM it has no word for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from estimator.engine_spec import EngineSpec
from estimator.memory import EngineLimits, Line, whole_bytes
from estimator.model import ModelSpec
from estimator.spec import GpuSpec, SpecError
from estimator.units import GIB

VERSION: Final = "0.18"
CONTEXT: Final = "CUDA context"
PRIORS: Final = "priors, not measured: the CUDA context and what libraries hold"
CACHE_MAX_ENTRY_COUNT: Final = 0.8
"""Share of the free memory (messages.py, both engines' config)."""
BLOCK_SIZE: Final = 64
MAX_PREFILL_TOKENS: Final = 8192
BATCH_SIZES: Final[Mapping[str, int]] = {
    "a100": 384,
    "a800": 384,
    "h100": 1024,
    "h800": 1024,
    "l20y": 1024,
    "h200": 1024,
}
"""max_batch_size by a part of the GPU's name; BATCH_SIZE for the others (utils.py get_max_batch_size)."""
BATCH_SIZE: Final = 128

CONTEXT_ONE_GPU: Final = whole_bytes(0.3 * GIB, 0.5 * GIB, 1.0 * GIB)
CONTEXT_MANY_GPUS: Final = whole_bytes(0.5 * GIB, 1.2 * GIB, 3.0 * GIB)

REFUSED: Final[Mapping[str, tuple[object, str]]] = {
    "pp": (1, "--pipeline-parallel-size: LMDeploy has none; use --tp"),
    "dcp": (1, "--decode-context-parallel-size is not supported with LMDeploy yet; leave it out"),
    "speculative": (None, "--speculative-config is not supported with LMDeploy yet; leave it out"),
    "kv_cache_memory_bytes": (
        None,
        "--kv-cache-memory-bytes: LMDeploy has none; use --gpu-memory-utilization, its cache share",
    ),
}
"""Field of EngineSpec -> the value that means it was not asked for, and the refusal."""


def limits(model: ModelSpec, gpu: GpuSpec, engine: EngineSpec) -> EngineLimits:
    """The flags with LMDeploy's defaults filled in; raises SpecError for one it does not have."""
    for field, (unasked, refusal) in REFUSED.items():
        if getattr(engine, field) != unasked:
            raise SpecError(refusal)
    share = engine.gpu_memory_utilization or CACHE_MAX_ENTRY_COUNT
    if share >= 1:
        raise SpecError("--gpu-memory-utilization must be below 1 with LMDeploy: its share of free memory")
    return EngineLimits(
        max_model_len=engine.max_model_len or model.context_tokens_max,
        max_num_seqs=engine.max_num_seqs or batch_size(gpu),
        max_num_batched_tokens=engine.max_num_batched_tokens or MAX_PREFILL_TOKENS,
        block_size=engine.block_size or BLOCK_SIZE,
        memory_share=share,
    )


def batch_size(gpu: GpuSpec) -> int:
    """Requests that run at once unless --max-batch-size says otherwise."""
    name = gpu.name.lower()
    return next((size for word, size in BATCH_SIZES.items() if word in name), BATCH_SIZE)


def prior_context(engine: EngineSpec) -> Line:
    """What CUDA, NCCL and libraries hold before the engine looks for free memory."""
    size = CONTEXT_ONE_GPU if engine.tp == 1 else CONTEXT_MANY_GPUS
    return Line(name=CONTEXT, size_bytes=size, source="prior")
