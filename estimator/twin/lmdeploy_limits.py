"""The flags a simulated LMDeploy obeys, in LMDeploy's own words, and where they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from estimator.engine_spec import LmdeployBackend
from estimator.kv_group import KvGroup
from estimator.lmdeploy import pytorch_engine, turbomind
from estimator.memory import KvBudget
from estimator.spec import SpecError
from estimator.twin.limits import EngineLimits
from estimator.units import ceil_div

PREFILL_INTERVAL: Final = 16
"""messages.py PytorchEngineConfig: tokens of room given ahead, and decodes at most before a prefill."""
NULL_BLOCKS: Final = 1
RESERVED_BLOCKS: Final[Mapping[LmdeployBackend, int]] = {
    "pytorch": pytorch_engine.RESERVED_BLOCKS,
    "turbomind": turbomind.RESERVED_BLOCKS,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LmdeployLimits:
    """What the scheduler obeys. Raises SpecError, one sentence, for values that make no engine."""

    backend: LmdeployBackend
    num_gpu_blocks: int
    """The PyTorch engine's includes the one it keeps for dummy inputs; TurboMind keeps none."""
    max_batch_size: int
    max_prefill_token_num: int
    session_len: int
    block_size: int = 64
    prefill_interval: int = PREFILL_INTERVAL
    """PyTorch engine only."""
    state_blocks: int = 0
    """TurboMind: blocks whose place the recurrent state of one request takes (its frontier)."""

    def __post_init__(self) -> None:
        for name in ("max_batch_size", "max_prefill_token_num", "session_len", "block_size"):
            if getattr(self, name) < 1:
                raise SpecError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.prefill_interval < 1:
            raise SpecError(f"prefill_interval must be at least 1, got {self.prefill_interval}")
        if self.usable_blocks < 1:
            raise SpecError(f"num_gpu_blocks {self.num_gpu_blocks} leaves no block for requests")
        if self.backend == "pytorch" and self.usable_blocks < 2:
            raise SpecError(
                "num_gpu_blocks must be at least 3: the PyTorch engine holds one back for each request"
            )

    @property
    def reserved_blocks(self) -> int:
        return RESERVED_BLOCKS[self.backend]

    @property
    def steps_under_way_max(self) -> int:
        """For the caller of step and settle. The pass that is decided ahead is the engine's own affair."""
        return 1

    @property
    def usable_blocks(self) -> int:
        return self.num_gpu_blocks - self.reserved_blocks

    @property
    def tokens_max_of_any(self) -> int:
        """Prompt and output of the longest request (pytorch/engine/engine.py _get_max_session_len)."""
        if self.backend == "turbomind":
            return self.session_len
        return min(self.session_len, (self.usable_blocks - 1) * self.block_size)

    @property
    def context_tokens_max(self) -> int:
        """TurboMind: tokens of all that begin or read in one pass (turbomind.cc HandleMissingParams)."""
        return self.session_len if self.session_len > self.max_batch_size else self.session_len**2

    def tokens_max(self, prompt_tokens: int, max_tokens: int) -> int:
        """Prompt and output together when a request ends; LMDeploy cuts max_new_tokens where it must.

        Raises SpecError for one that cannot begin, or that waits for ever.
        """
        if prompt_tokens < 1 or max_tokens < 1:
            raise SpecError(f"a request needs a prompt and an output: got {prompt_tokens} and {max_tokens}")
        longest = self.tokens_max_of_any
        if prompt_tokens >= longest:
            raise SpecError(
                f"a prompt of {prompt_tokens} tokens leaves no room for output within session_len {longest}; "
                "shorten it"
            )
        tokens = min(prompt_tokens + max_tokens, longest)
        needed = ceil_div(tokens, self.block_size) + self.state_blocks
        if self.backend == "turbomind" and needed > self.usable_blocks:
            raise SpecError(
                f"a request of {tokens} tokens needs {needed} blocks and the cache has {self.usable_blocks}; "
                "shorten it or enlarge the cache"
            )
        return tokens


def limits_of_budget(budget: KvBudget, backend: LmdeployBackend) -> LmdeployLimits:
    """The likely pool of an estimate with engine="lmdeploy"; raises SpecError as `limits_under_lmdeploy`."""
    resolved = budget.limits
    return LmdeployLimits(
        backend=backend,
        num_gpu_blocks=int(budget.blocks.likely),
        max_batch_size=resolved.max_num_seqs,
        max_prefill_token_num=resolved.max_num_batched_tokens,
        session_len=resolved.max_model_len,
        block_size=resolved.block_size,
        state_blocks=_state_blocks(budget.groups),
    )


def limits_under_lmdeploy(limits: EngineLimits, backend: LmdeployBackend) -> LmdeployLimits:
    """A server described in vLLM's words, run by LMDeploy with as many usable blocks.

    Raises SpecError for what is not modelled: blocks that are freed behind a window.
    """
    return LmdeployLimits(
        backend=backend,
        num_gpu_blocks=limits.num_gpu_blocks - NULL_BLOCKS + RESERVED_BLOCKS[backend],
        max_batch_size=limits.max_num_seqs,
        max_prefill_token_num=limits.max_num_batched_tokens,
        session_len=limits.max_model_len,
        block_size=limits.cache_groups[0].block_size,
        state_blocks=_state_blocks(limits.cache_groups),
    )


def _state_blocks(groups: Sequence[KvGroup]) -> int:
    paged = [group.kind for group in groups if group.kind != "state"]
    if paged != ["full"]:
        raise SpecError(
            f"the twin does not model LMDeploy's {' and '.join(paged)} cache; try --backend turbomind or "
            "another model"
        )
    return sum(group.state_blocks for group in groups if group.kind == "state")
