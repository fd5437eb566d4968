"""Random limits of the simulated engine for Hypothesis: pools, flags and cache groups of every kind."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from estimator.kv_group import KvGroup
from estimator.twin.limits import EngineLimits

LIMITS = st.builds(
    lambda blocks, size, seqs, tokens: EngineLimits(
        num_gpu_blocks=blocks,
        block_size=size,
        max_num_seqs=seqs,
        max_num_batched_tokens=max(tokens, seqs),
        max_model_len=(blocks - 1) * size,
    ),
    st.integers(min_value=3, max_value=40),
    st.sampled_from([1, 2, 4, 16]),
    st.integers(min_value=1, max_value=12),
    st.integers(min_value=1, max_value=64),
)


def group_of(kind: str, size: int, reach: int, blocks: int) -> KvGroup:
    """`rolls` is a state kept for each block of tokens, `saved` one with a checkpoint of the prompt too."""
    state = {
        "state": {"state_blocks": blocks},
        "rolls": {"state_blocks": blocks, "rolls": True},
        "saved": {"state_blocks": blocks, "rolls": True, "checkpoint": True},
    }.get(kind)
    return KvGroup(
        kind="state" if state else kind,  # type: ignore[arg-type]
        block_size=size,
        layers=1,
        page_bytes=0,
        reach_tokens=reach,
        **(state or {"ahead_tokens": blocks - 1}),  # type: ignore[arg-type]
    )


def groups_of(*states: str) -> st.SearchStrategy[list[KvGroup]]:
    """One block size and, as in a real model, one kind of state."""
    return st.tuples(st.integers(min_value=1, max_value=8), st.sampled_from(states)).flatmap(
        lambda one: st.lists(
            st.builds(
                group_of,
                st.sampled_from(["full", "window", "chunk", one[1]]),
                st.just(one[0]),
                st.integers(min_value=1, max_value=30),
                st.integers(min_value=1, max_value=4),
            ),
            min_size=1,
            max_size=3,
        )
    )


GROUPS = groups_of("state", "rolls", "saved", "cross")
FOUND_GROUPS = groups_of("rolls", "saved")
ANY_LIMITS = st.one_of(
    LIMITS,
    st.builds(
        lambda limits, policy, watermark: replace(
            limits, enable_prefix_caching=True, policy=policy, watermark=watermark
        ),
        LIMITS,
        st.sampled_from(["fcfs", "priority"]),
        st.sampled_from([0.0, 0.2]),
    ),
    st.builds(
        lambda limits, policy, groups: replace(limits, policy=policy, groups=tuple(groups)),
        LIMITS,
        st.sampled_from(["fcfs", "priority"]),
        GROUPS,
    ),
    st.builds(
        lambda limits, blocks, groups: replace(
            limits,
            enable_prefix_caching=True,
            groups=tuple(groups),
            prefix_cache_retention_interval=None if blocks is None else blocks * groups[0].block_size,
        ),
        LIMITS,
        st.sampled_from([0, 0, None, 1, 3]),
        FOUND_GROUPS,
    ),
)
CROWDED = st.builds(
    lambda limits, policy, groups, tokens: replace(
        limits, policy=policy, groups=tuple(groups), max_num_seqs=6, max_num_batched_tokens=tokens
    ),
    LIMITS,
    st.sampled_from(["fcfs", "priority"]),
    st.one_of(st.just([]), GROUPS),
    st.integers(min_value=6, max_value=12),
)
