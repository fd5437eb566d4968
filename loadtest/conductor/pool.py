"""What a server shows of its KV cache -> KvPool, or nothing where the figures do not fit one cache group."""

from __future__ import annotations

from dataclasses import replace

from estimator.capacity import KvPool, vllm_headline
from estimator.kv_group import NULL_BLOCKS
from loadtest.collector.engine_metrics import EngineReading, count_of


def kv_pool_from_metrics(reading: EngineReading, max_model_len: int | None) -> KvPool | None:
    """The pool of vLLM's cache_config_info; None when it is absent or belongs to several cache groups.

    Models with sliding windows or recurrent state have several groups of blocks, and `block_size` is then
    only the smallest of them: multiplying it would be a wrong number. Where the server shows its own
    kv_cache_size_tokens, it must agree with a single group (vLLM 0.32); older servers show none.
    Data-parallel engines have a pool each.
    """
    block_size = count_of(reading.cache_config, "block_size")
    blocks = min(reading.engine_blocks, default=0)
    if block_size is None or blocks <= NULL_BLOCKS:
        return None
    pool = KvPool(
        blocks=blocks,
        reserved_blocks=NULL_BLOCKS,
        block_size_tokens=block_size,
        bytes_per_block=None,
        source="metrics",
        engine_blocks=_several(reading.engine_blocks),
    )
    shown_tokens = count_of(reading.cache_config, "kv_cache_size_tokens")
    if shown_tokens is not None and max_model_len is not None:
        one_group = vllm_headline(pool, max_model_len)
        if one_group.cache_tokens != shown_tokens:
            return None
    return pool


def counted_pool(reading: EngineReading, computed: KvPool) -> KvPool | None:
    """The computed pool with the blocks the server really has; None when it does not show them.

    For models of several cache groups: how blocks are used follows from the model, how many there are only
    the server knows.
    """
    blocks = min(reading.engine_blocks, default=0)
    if blocks <= computed.reserved_blocks:
        return None
    return replace(computed, blocks=blocks, engine_blocks=_several(reading.engine_blocks), source="metrics")


def computed_pool(reading: EngineReading, computed: KvPool) -> KvPool:
    """The computed pool, once for each engine that the server shows to have."""
    engines = round(reading.signals.get("engines", 1))
    return replace(computed, engine_blocks=_several((computed.blocks,) * engines))


def _several(engine_blocks: tuple[int, ...]) -> tuple[int, ...]:
    return engine_blocks if len(engine_blocks) > 1 else ()
