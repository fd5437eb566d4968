"""Random settings of the scheduler, in the words of the twin and of vLLM, for scheduler_parity.py."""

from __future__ import annotations

import math
import random
from typing import Any

import torch
from vllm.engine.arg_utils import EngineArgs
from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange
from vllm.v1.core.encoder_cache_manager import EncoderDecoderCacheManager
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import (
    ChunkedLocalAttentionSpec,
    CrossAttentionSpec,
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    KVCacheSpec,
    MambaSpec,
    SlidingWindowSpec,
)
from vllm.v1.structured_output import StructuredOutputManager

from estimator.kv_group import GroupKind, KvGroup
from estimator.twin.engine import EngineLimits

BLOCK_SIZE = 32
PLENTY = 1 << 30


def group(kind: GroupKind, **more: Any) -> KvGroup:
    return KvGroup(**{"kind": kind, "block_size": BLOCK_SIZE, "layers": 1, "page_bytes": 0, **more})


def plain(_: random.Random) -> dict[str, Any]:
    return {}


def windows(rng: random.Random) -> dict[str, Any]:
    """A model of full and windowed or chunked layers, in groups of their own."""
    reach_tokens = rng.choice([1, 20, 32, 50, 100])
    others = [
        group(rng.choice(["window", "chunk"]), reach_tokens=reach_tokens) for _ in range(rng.choice([1, 3]))
    ]
    return {"groups": (group("full"), *others)[rng.choice([0, 1]) :]}


def retention(rng: random.Random, size: int = BLOCK_SIZE) -> dict[str, Any]:
    return {"prefix_cache_retention_interval": rng.choice([0, 0, None, size, 2 * size, 4 * size])}


def windows_and_prefixes(rng: random.Random) -> dict[str, Any]:
    """Where a window, a chunk or a state must be found beside the full layers, or alone."""
    more = windows(rng)
    kept = retention(rng) if any(group.kind == "window" for group in more["groups"]) else {}
    return {"enable_prefix_caching": True, **more, **kept}


def cross(rng: random.Random) -> dict[str, Any]:
    """Layers that look at what an encoder said, beside full ones."""
    return {"groups": (group("full"), group("cross", reach_tokens=rng.choice([20, 64, 100])))}


def states(rng: random.Random) -> dict[str, Any]:
    """Recurrent layers beside full ones: one state a request, or one for each block of tokens."""
    rolls = rng.random() < 0.7
    guesses = rng.choice([0, 0, 1, 3])
    # A state that does not roll has one "block" for everything.
    size = BLOCK_SIZE * rng.choice([1, 2]) if rolls else 1024
    checkpoint = rolls and rng.random() < 0.5
    state = group("state", block_size=size, state_blocks=1 + guesses, rolls=rolls, checkpoint=checkpoint)
    full = group("full", block_size=size if rolls else BLOCK_SIZE)
    found = {"enable_prefix_caching": rolls and rng.random() < 0.7}
    return {
        "groups": rng.choice([(full, state), (state, state, full), (state,)]),
        **found,
        **(retention(rng, size) if rolls else {}),
    }


def prefixes(_: random.Random) -> dict[str, Any]:
    return {"enable_prefix_caching": True}


def ahead(rng: random.Random) -> dict[str, Any]:
    """Slots for guessed tokens."""
    tokens = rng.choice([1, 3, 7, 40])
    full = group("full", ahead_tokens=tokens)
    return {"groups": (full, group("window", reach_tokens=50, ahead_tokens=tokens))[: rng.choice([1, 2])]}


def priorities(rng: random.Random) -> dict[str, Any]:
    return {"policy": "priority", "enable_prefix_caching": rng.random() < 0.3}


def watermark(rng: random.Random) -> dict[str, Any]:
    return {"watermark": rng.choice([0.1, 0.3]), "enable_prefix_caching": rng.random() < 0.3}


SCENARIOS = (
    plain,
    windows,
    states,
    prefixes,
    windows_and_prefixes,
    ahead,
    priorities,
    watermark,
    cross,
)


def random_limits(rng: random.Random, more: dict[str, Any]) -> EngineLimits:
    """Small pools, so that queues, chunks and preemptions all occur."""
    blocks, seqs = rng.choice([12, 20, 40, 80]), rng.choice([3, 8, 32])
    return EngineLimits(
        num_gpu_blocks=blocks,
        block_size=BLOCK_SIZE,
        max_num_seqs=seqs,
        max_num_batched_tokens=max(seqs, rng.choice([32, 64, 200, 2048])),
        max_model_len=rng.choice([256, min(320, (blocks - 1) * BLOCK_SIZE)]),
        steps_in_flight=rng.choice([1, 2]),
        **more,
    )


def their_spec(group: KvGroup) -> KVCacheSpec:
    shape = {"num_kv_heads": 1, "head_size": 1, "dtype": torch.float32}
    match group.kind:
        case "full":
            return FullAttentionSpec(block_size=group.block_size, **shape)
        case "window":
            return SlidingWindowSpec(block_size=group.block_size, sliding_window=group.reach_tokens, **shape)
        case "chunk":
            return ChunkedLocalAttentionSpec(
                block_size=group.block_size, attention_chunk_size=group.reach_tokens, **shape
            )
        case "state":
            return MambaSpec(
                block_size=group.block_size,
                shapes=((1,),),
                dtypes=(torch.float32,),
                mamba_cache_mode="align" if group.rolls else "none",
                num_speculative_blocks=group.state_blocks - 1,
                num_prefill_checkpoint_blocks=int(group.checkpoint),
                prefill_checkpoint_alignment=group.block_size if group.checkpoint else None,
            )
        case "cross":
            return CrossAttentionSpec(block_size=group.block_size, **shape)


def vllm_scheduler(model: str, limits: EngineLimits) -> Any:
    config = EngineArgs(
        model=model,
        max_model_len=limits.max_model_len,
        block_size=limits.block_size,
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        num_gpu_blocks_override=limits.num_gpu_blocks,
        enable_prefix_caching=limits.enable_prefix_caching,
        scheduling_policy=limits.policy,
        watermark=limits.watermark,
        enforce_eager=True,
        load_format="dummy",
    ).create_engine_config()
    config.cache_config.num_gpu_blocks = limits.num_gpu_blocks
    # On a CPU vLLM turns it off, and its count of tokens in flight with it.
    config.scheduler_config.async_scheduling = limits.steps_in_flight == 2
    groups = limits.cache_groups
    rolling = [group for group in groups if group.rolls]
    config.cache_config.mamba_cache_mode = "align" if rolling else "none"
    if rolling:
        config.cache_config.block_size = rolling[0].block_size
    scheduler = (AsyncScheduler if limits.steps_in_flight == 2 else Scheduler)(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(
            num_blocks=limits.num_gpu_blocks,
            kv_cache_tensors=[],
            kv_cache_groups=[
                KVCacheGroupSpec([f"layer{number}"], their_spec(group)) for number, group in enumerate(groups)
            ],
            prefix_cache_retention_interval=limits.prefix_cache_retention_interval,
        ),
        structured_output_manager=StructuredOutputManager(config),
        block_size=math.lcm(*(group.block_size for group in groups)),
        log_stats=True,
    )
    # A drafting model would set this; the twin has no guesses that could be accepted.
    scheduler.num_lookahead_tokens = max(group.ahead_tokens for group in groups)
    if any(group.kind == "cross" for group in groups):
        scheduler.is_encoder_decoder = True
        scheduler.max_num_encoder_input_tokens = PLENTY
        scheduler.encoder_cache_manager = EncoderDecoderCacheManager(cache_size=PLENTY)
    return scheduler


def encoder_inputs(limits: EngineLimits, request_id: str) -> list[MultiModalFeatureSpec]:
    """What an encoder-decoder request shows its encoder; none for the others."""
    return [
        MultiModalFeatureSpec(
            data=None,
            modality="audio",
            identifier=request_id,
            mm_position=PlaceholderRange(offset=0, length=group.reach_tokens),
        )
        for group in limits.groups
        if group.kind == "cross"
    ]
