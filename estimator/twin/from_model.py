"""A twin made from a model and a GPU instead of a file: an Estimate -> TwinProfile and what its steps cost.

The scheduler then runs over the very blocks and cache groups that the estimator counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from estimator.estimate import Estimate
from estimator.kv_group import KvGroup
from estimator.spec import SpecError
from estimator.twin.cost import ServerCost
from estimator.twin.limits import Policy
from estimator.twin.lmdeploy_limits import limits_of_budget
from estimator.twin.prior import CONTEXT_TOKENS, prior_cost
from estimator.twin.profile import NULL_BLOCKS, TwinProfile
from estimator.twin.scheduler import SchedulerLimits

NO_PREFIX_CACHE: Final = (
    "the twin models prefix caching for cache groups of one block size: it is off here, and prompts that "
    "share nothing lose nothing by it"
)
SERIAL_PIPELINE: Final = (
    "the twin lets the stages of a pipeline work one after another: with several batches under way a server "
    "makes more tokens a second than foretold, up to as many times as it has stages"
)


def profile_of_estimate(
    answer: Estimate, *, scheduling_policy: Policy = "fcfs", watermark: float = 0.0
) -> TwinProfile:
    """The simulated server of an Estimate: its likely pool, its resolved flags, its prior cost.

    Raises SpecError, one sentence, for a cache that the scheduler does not model.
    """
    budget = answer.budget
    limits = budget.limits
    return TwinProfile(
        served_model_name=answer.model.name,
        num_gpu_blocks=answer.pool.usable_blocks + NULL_BLOCKS,
        block_size=limits.block_size,
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        max_model_len=limits.max_model_len,
        gpu_memory_utilization=limits.memory_share,
        step_cost=cost_of_estimate(answer).step,
        enable_prefix_caching=has_prefix_cache(answer),
        scheduling_policy=scheduling_policy,
        watermark=watermark,
        groups=budget.groups,
        steps_in_flight=budget.in_flight.steps,
    )


def limits_of_estimate(
    answer: Estimate, *, scheduling_policy: Policy = "fcfs", watermark: float = 0.0
) -> SchedulerLimits:
    """The flags of vLLM's scheduler or of LMDeploy's.

    Raises SpecError, one sentence, for a cache that is not modelled and for a flag that LMDeploy has not.
    """
    if answer.engine.engine == "vllm":
        return profile_of_estimate(answer, scheduling_policy=scheduling_policy, watermark=watermark).limits
    if scheduling_policy != "fcfs" or watermark:
        raise SpecError("--scheduling-policy and --watermark are vLLM's; leave them out with LMDeploy")
    return limits_of_budget(answer.budget, answer.engine.backend)


def has_prefix_cache(answer: Estimate) -> bool:
    """Asked for, and modelled. LMDeploy keeps no prefixes unless it is told to, which no flag here does."""
    asked = answer.engine.enable_prefix_caching and answer.engine.engine == "vllm"
    groups = answer.budget.groups
    return asked and len({group.block_size for group in groups}) == 1 and not _crosses(groups)


def cautions_of(answer: Estimate) -> tuple[str, ...]:
    """In what the twin falls short of the flags, in words."""
    sizes = {group.block_size for group in answer.budget.groups}
    asked = answer.engine.enable_prefix_caching and answer.engine.engine == "vllm"
    uncached = (NO_PREFIX_CACHE,) if asked and len(sizes) > 1 else ()
    return (*uncached, SERIAL_PIPELINE) if answer.engine.pp > 1 else uncached


def _crosses(groups: Sequence[KvGroup]) -> bool:
    """vLLM itself turns prefix caching off where a group is of the encoder's tokens."""
    return any(group.kind == "cross" for group in groups)


def cost_of_estimate(answer: Estimate, context_tokens: int = CONTEXT_TOKENS) -> ServerCost:
    """The data-sheet prior; context_tokens: of a typical sequence while it decodes."""
    within = min(context_tokens, answer.budget.limits.max_model_len)
    return prior_cost(answer.model, answer.gpu, answer.engine, answer.budget, within)
