"""How a server is started: the flags that decide its memory, checked at birth. None: the engine's default.

The names are vLLM's; LMDeploy's own flags are translated where they mean the same (max_model_len is its
session_len, max_num_seqs its max_batch_size, max_num_batched_tokens its max_prefill_token_num,
gpu_memory_utilization its cache_max_entry_count).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from estimator.spec import EngineName, SpecError

Usage = Literal["server", "llm_class"]
LmdeployBackend = Literal["turbomind", "pytorch"]

DRAFT_METHODS: Final = ("mtp", "eagle", "eagle3", "draft_model", "ngram")


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeculativeSpec:
    """--speculative-config: how tokens are guessed ahead, and how many."""

    method: str
    num_speculative_tokens: int
    draft_layers: int = 1
    """Decoder layers of an EAGLE or draft model; multi-token prediction takes the checkpoint's own."""

    def __post_init__(self) -> None:
        if self.method not in DRAFT_METHODS:
            raise SpecError(
                f"--speculative-config: method {self.method!r} is not known; "
                f"use one of {', '.join(DRAFT_METHODS)}"
            )
        for field in ("num_speculative_tokens", "draft_layers"):
            if not 1 <= getattr(self, field) <= 1000:
                raise SpecError(f"--speculative-config: {field} must be from 1 to 1000")

    @property
    def lookahead_tokens(self) -> int:
        """Slots a step reserves ahead of the computed tokens; n-gram guesses need none."""
        return 0 if self.method == "ngram" else self.num_speculative_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """The flags of one server. Sizes in bytes or tokens as named; tp, pp and dcp in GPUs."""

    engine: EngineName = "vllm"
    tp: int = 1
    pp: int = 1
    dcp: int = 1
    enable_expert_parallel: bool = False
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    block_size: int | None = None
    kv_cache_dtype: str = "auto"
    gpu_memory_utilization: float | None = None
    kv_cache_memory_bytes: int | None = None
    num_gpu_blocks_override: int | None = None
    enforce_eager: bool = False
    enable_prefix_caching: bool = True
    disable_hybrid_kv_cache_manager: bool = False
    async_scheduling: bool = True
    mamba_ssm_cache_dtype: str = "auto"
    speculative: SpeculativeSpec | None = None
    load_format: str = "auto"
    usage: Usage = "server"
    backend: LmdeployBackend = "turbomind"
    """LMDeploy's."""
    quant_policy: int = 0
    """LMDeploy's KV cache: 0 (16 bits), 4 or 8."""

    def __post_init__(self) -> None:
        for field, flag in (
            ("tp", "--tensor-parallel-size"),
            ("pp", "--pipeline-parallel-size"),
            ("dcp", "--decode-context-parallel-size"),
        ):
            _require(getattr(self, field) >= 1, f"{flag} must be at least 1, got {getattr(self, field)}")
        _require(
            self.tp % self.dcp == 0,
            f"--decode-context-parallel-size {self.dcp} does not divide --tp {self.tp}",
        )
        for field in (
            "max_model_len",
            "max_num_seqs",
            "max_num_batched_tokens",
            "block_size",
            "kv_cache_memory_bytes",
            "num_gpu_blocks_override",
        ):
            value = getattr(self, field)
            flag = "--" + field.replace("_", "-")
            _require(value is None or value >= 1, f"{flag} must be at least 1, got {value}")
        share = self.gpu_memory_utilization
        _require(
            share is None or 0.0 < share <= 1.0,
            f"--gpu-memory-utilization must be above 0 and at most 1, got {share}",
        )
        _require(self.quant_policy in (0, 4, 8), f"--quant-policy must be 0, 4 or 8, got {self.quant_policy}")

    @property
    def lookahead_tokens(self) -> int:
        return 0 if self.speculative is None else self.speculative.lookahead_tokens


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise SpecError(message)
