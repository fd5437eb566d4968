"""Token ids -> the names of the blocks they fill, by which the prefix cache finds them again.

Source: vLLM 0.32 v1/core/kv_cache_utils.py hash_block_tokens and get_request_block_hasher: the hash of a full
block covers the hash of the block before it, so equal names mean equal beginnings.
"""

from __future__ import annotations

from collections.abc import Sequence

from estimator.twin.request import Prefix


def prefix_of(ids: Sequence[int], block_size: int, salt: str = "") -> Prefix:
    """One (name, tokens) for each full block of `ids`; prompts of another `salt` get other names.

    The names are Python's own hashes: 64 bits, and good within one process alone.
    """
    name, names = hash(salt), []
    for end in range(block_size, len(ids) + 1, block_size):
        name = hash((name, *ids[end - block_size : end]))
        names.append((name, end))
    return tuple(names)
