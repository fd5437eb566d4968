"""The flags a simulated scheduler obeys, in vLLM's words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from estimator.kv_group import KvGroup, full_group
from estimator.spec import SpecError

Policy = Literal["fcfs", "priority"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """The engine flags the scheduler obeys. `num_gpu_blocks` includes the null block.

    Raises SpecError, one sentence, for values vLLM refuses and for what is not modelled.
    """

    num_gpu_blocks: int
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    groups: tuple[KvGroup, ...] = ()
    """One block table each, all served by one pool; () means one full group of `block_size`."""
    enable_prefix_caching: bool = False
    prefix_cache_retention_interval: int | None = 0
    """Every how many tokens a window or state is kept for others: 0 only at the end of a prompt and where a
    shared beginning ends, None after each block. vLLM's default is 0."""
    policy: Policy = "fcfs"
    watermark: float = 0.0
    """Share of the blocks that stays free when a request is admitted beside others."""
    steps_in_flight: int = 1
    """Steps that vLLM has under way at most (more than two with pipeline parallelism): a windowed group makes
    room for their tokens at admission."""

    def __post_init__(self) -> None:
        for name in ("block_size", "max_num_seqs", "max_num_batched_tokens", "max_model_len"):
            if getattr(self, name) < 1:
                raise SpecError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.num_gpu_blocks < 2:
            raise SpecError(
                f"num_gpu_blocks must be at least 2 (one is the null block), got {self.num_gpu_blocks}"
            )
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise SpecError(
                f"max_num_batched_tokens {self.max_num_batched_tokens} is below max_num_seqs "
                f"{self.max_num_seqs}: each running request needs a token a step, so vLLM refuses it"
            )
        if not 0.0 <= self.watermark < 1.0:
            raise SpecError(f"watermark must be a share from 0 to below 1, got {self.watermark}")
        if self.enable_prefix_caching:
            self._refuse_uncached()

    def _refuse_uncached(self) -> None:
        groups = self.cache_groups
        if any(group.kind == "cross" or (group.kind == "state" and not group.rolls) for group in groups):
            raise SpecError(
                "enable_prefix_caching: cross-attention, and a state that does not roll, keep nothing that "
                "others could find; turn it off"
            )
        if len({group.block_size for group in groups}) > 1:
            raise SpecError(
                "enable_prefix_caching is modelled for cache groups of one block size, got "
                f"{[group.block_size for group in groups]}; turn it off"
            )
        interval = self.prefix_cache_retention_interval
        if interval is not None and (interval < 0 or interval % groups[0].block_size):
            raise SpecError(
                f"prefix_cache_retention_interval must be 0 or a multiple of {groups[0].block_size} tokens, "
                f"got {interval}"
            )

    @property
    def cache_groups(self) -> tuple[KvGroup, ...]:
        return self.groups or (full_group(self.block_size),)

    @property
    def steps_under_way_max(self) -> int:
        """Steps that may be made up before the oldest is settled: the engine models no more than one ahead.

        A caller may always settle each before the next.
        """
        return min(2, self.steps_in_flight)

    @property
    def max_in_flight_tokens(self) -> int:
        """Tokens of steps under way at most (vLLM 0.32 config/vllm.py max_in_flight_tokens)."""
        return self.steps_in_flight * self.max_num_batched_tokens

    @property
    def watermark_blocks(self) -> int:
        return int(self.watermark * self.num_gpu_blocks)

    def tokens_max(self, prompt_tokens: int, max_tokens: int) -> int:
        """Prompt and output together when a request ends. Raises SpecError for one that cannot begin."""
        if prompt_tokens < 1 or max_tokens < 1:
            raise SpecError(f"a request needs a prompt and an output: got {prompt_tokens} and {max_tokens}")
        if prompt_tokens >= self.max_model_len:
            raise SpecError(
                f"a prompt of {prompt_tokens} tokens leaves no room for output within max_model_len "
                f"{self.max_model_len}; shorten it"
            )
        return min(prompt_tokens + max_tokens, self.max_model_len)
