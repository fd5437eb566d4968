"""Drives vLLM's own Scheduler and the twin's Engine side by side and stops at the first difference.

Run by the Python of the vLLM environment: `python tests/vllm/scheduler_parity.py MODEL_DIR [CONFIGS [SEED]]`.
Both get the same arrivals and aborts; after every step the scheduled tokens, both queues in order, every
block id, the free blocks and the requests that gained a token must be equal. vLLM runs without async
scheduling: the twin has one step in flight.
"""

from __future__ import annotations

import json
import math
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", VLLM_CPU_KVCACHE_SPACE="1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from vllm.engine.arg_utils import EngineArgs
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import (
    ChunkedLocalAttentionSpec,
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    KVCacheSpec,
    MambaSpec,
    SlidingWindowSpec,
)
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from estimator.kv_group import GroupKind, KvGroup
from estimator.spec import SpecError
from estimator.twin.engine import Engine, EngineLimits

REQUESTS = 60
ARRIVALS = (0, 0, 0, 1, 1, 2, 5)  # new requests before a step, drawn from these
ABORT_SHARE = 0.03
BLOCK_SIZE = 32
LONGEST_PROMPT = 150


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


def states(rng: random.Random) -> dict[str, Any]:
    """Recurrent layers beside full ones: one state a request, or one for each block of tokens."""
    rolls = rng.random() < 0.7
    guesses = rng.choice([0, 0, 1, 3])
    # A state that does not roll has one "block" for everything.
    size = BLOCK_SIZE * rng.choice([1, 2]) if rolls else 1024
    state = group("state", block_size=size, state_blocks=1 + guesses, rolls=rolls)
    full = group("full", block_size=size if rolls else BLOCK_SIZE)
    return {"groups": rng.choice([(full, state), (state, state, full), (state,)])}


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


SCENARIOS = (plain, windows, states, prefixes, ahead, priorities, watermark)


def random_limits(rng: random.Random, more: dict[str, Any]) -> EngineLimits:
    """Small pools, so that queues, chunks and preemptions all occur."""
    blocks, seqs = rng.choice([12, 20, 40, 80]), rng.choice([3, 8, 32])
    return EngineLimits(
        num_gpu_blocks=blocks,
        block_size=BLOCK_SIZE,
        max_num_seqs=seqs,
        max_num_batched_tokens=max(seqs, rng.choice([32, 64, 200, 2048])),
        max_model_len=rng.choice([256, min(320, (blocks - 1) * BLOCK_SIZE)]),
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
            )
        case _:
            raise ValueError(group.kind)


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
        async_scheduling=False,
        enforce_eager=True,
        load_format="dummy",
    ).create_engine_config()
    config.cache_config.num_gpu_blocks = limits.num_gpu_blocks
    groups = limits.cache_groups
    rolling = [group for group in groups if group.rolls]
    config.cache_config.mamba_cache_mode = "align" if rolling else "none"
    if rolling:
        config.cache_config.block_size = rolling[0].block_size
    scheduler = Scheduler(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(
            num_blocks=limits.num_gpu_blocks,
            kv_cache_tensors=[],
            kv_cache_groups=[
                KVCacheGroupSpec([f"layer{number}"], their_spec(group)) for number, group in enumerate(groups)
            ],
        ),
        structured_output_manager=StructuredOutputManager(config),
        block_size=math.lcm(*(group.block_size for group in groups)),
        log_stats=True,
    )
    # A drafting model would set this; the twin has no guesses that could be accepted.
    scheduler.num_lookahead_tokens = max(group.ahead_tokens for group in groups)
    return scheduler


class Pair:
    """The two schedulers, fed alike."""

    def __init__(self, model: str, limits: EngineLimits) -> None:
        self.limits = limits
        self.theirs = vllm_scheduler(model, limits)
        self.ours = Engine(limits)
        self.looked_up = [0, 0]
        init_none_hash(sha256)

    def add(self, number: int, prompt_tokens: int, output_tokens: int, rng: random.Random) -> str:
        """Raises SpecError when the twin says that it could never finish."""
        request_id = f"r{number}"
        prefix = random_prefix(rng) if self.limits.enable_prefix_caching else ()
        priority = rng.randint(0, 2) if self.limits.policy == "priority" else 0
        ours = self.ours.add(request_id, prompt_tokens, output_tokens, priority=priority, prefix=prefix)
        sampling = SamplingParams(
            max_tokens=min(output_tokens, self.limits.max_model_len - prompt_tokens), ignore_eos=True
        )
        self.theirs.add_request(
            Request(
                request_id=request_id,
                prompt_token_ids=[token_at(ours, position) for position in range(prompt_tokens)],
                sampling_params=sampling,
                pooling_params=None,
                priority=priority,
                arrival_time=number,
                block_hasher=get_request_block_hasher(BLOCK_SIZE, sha256)
                if self.limits.enable_prefix_caching
                else None,
            )
        )
        return request_id

    def abort(self, request_id: str) -> None:
        self.theirs.finish_requests(request_id, RequestStatus.FINISHED_ABORTED)
        self.ours.abort(request_id)

    def step(self) -> int:
        """One step of both, compared; returns the preemptions in it."""
        before = {r.request_id: r.computed_tokens for r in (*self.ours.running, *self.ours.waiting)}
        their_step, our_step = self.theirs.schedule(), self.ours.step()
        admitted = {r.request_id for r in our_step.admitted}
        scheduled = {
            r.request_id: r.computed_tokens
            - (r.cached_tokens if r.request_id in admitted else before[r.request_id])
            for r in our_step.batch
        }
        same("scheduled tokens", list(their_step.num_scheduled_tokens.items()), list(scheduled.items()))
        for queue in ("running", "waiting"):
            theirs, ours = getattr(self.theirs, queue), getattr(self.ours, queue)
            same(queue, [r.request_id for r in theirs], [r.request_id for r in ours])
        same("block ids", self._their_blocks(), self._our_blocks())
        pool = self.theirs.kv_cache_manager.block_pool
        same("free blocks", pool.get_num_free_blocks(), self.ours.pool.free_blocks)
        self._compare_prefix_cache()
        emitted = self._settle_theirs(their_step)
        same("emitted", emitted, [r.request_id for r in self.ours.settle(our_step).emitted])
        return len(our_step.preempted)

    def _compare_prefix_cache(self) -> None:
        theirs, ours = self.theirs.kv_cache_manager.prefix_cache_stats, self.ours.stats
        self.looked_up[0] += theirs.queries
        self.looked_up[1] += theirs.hits
        same("prefix cache", self.looked_up, [ours.prefix_cache_queries, ours.prefix_cache_hits])
        theirs.queries = theirs.hits = 0

    def _their_blocks(self) -> dict[str, list[list[int]]]:
        """A table for each cache group of each running request; vLLM hands out 0 for what is not kept."""
        managers = self.theirs.kv_cache_manager.coordinator.single_type_managers
        return {
            r.request_id: [[block.block_id for block in m.req_to_blocks[r.request_id]] for m in managers]
            for r in self.theirs.running
        }

    def _our_blocks(self) -> dict[str, list[list[int]]]:
        return {r.request_id: [table.ids for table in r.tables] for r in self.ours.running}

    def _settle_theirs(self, step: Any) -> list[str]:
        ids = list(step.num_scheduled_tokens)
        requests = [self.theirs.requests[request_id] for request_id in ids]
        ours = {request.request_id: request for request in self.ours.running}
        tokens = [
            [token_at(ours[r.request_id], r.num_tokens)] if r.num_computed_tokens >= r.num_tokens else []
            for r in requests
        ]
        output = ModelRunnerOutput(
            req_ids=ids,
            req_id_to_index={request_id: index for index, request_id in enumerate(ids)},
            sampled_token_ids=tokens,
            logprobs=None,
            prompt_logprobs_dict={},
            pooler_output=[],
        )
        self.theirs.update_from_output(step, output)
        return [request_id for request_id, sampled in zip(ids, tokens, strict=True) if sampled]


def random_prefix(rng: random.Random) -> tuple[tuple[str, int], ...]:
    """None, an instruction that all share, or that and what was said and answered in one talk."""
    talk = (f"talk{rng.randint(0, 5)}", rng.choice([64, 100, 300]))
    return (("instruction", 40), talk)[: rng.choice([0, 1, 2, 2])]


def token_at(request: Any, position: int) -> int:
    """A token id that says what the twin is told: equal where requests share a prefix, else never."""
    names = ["instruction", *(f"talk{number}" for number in range(6))]
    for name, tokens in request.prefix:
        if position < tokens:
            return names.index(name)
    return 100 + request.arrival


def same(what: str, theirs: object, ours: object) -> None:
    if theirs != ours:
        raise DifferenceError(f"{what} differ\n vLLM: {theirs}\n twin: {ours}")


class DifferenceError(Exception):
    """The twin did something else than vLLM."""


def history(pair: Pair, rng: random.Random) -> Iterator[int]:
    """Preemptions of each step until every request has ended."""
    made: list[str] = []
    while len(made) < REQUESTS or pair.ours.has_work:
        for _ in range(rng.choice(ARRIVALS) if len(made) < REQUESTS else 0):
            prompt_tokens = rng.randint(1, min(pair.limits.max_model_len - 1, LONGEST_PROMPT))
            try:
                made.append(pair.add(len(made), prompt_tokens, rng.randint(1, 120), rng))
            except SpecError:  # too long for this pool, so vLLM would let it wait for ever
                continue
        if made and rng.random() < ABORT_SHARE:
            pair.abort(rng.choice(made))
        if pair.ours.has_work:
            yield pair.step()


def main(model: str, configs: int, first: int) -> None:
    totals: dict[str, Any] = {
        "configs": configs,
        "requests": configs * REQUESTS,
        "steps": 0,
        "preemptions": 0,
    }
    totals["prefix_cache_hits"] = 0
    for seed in range(first, first + configs):
        rng = random.Random(seed)
        scenario = SCENARIOS[seed % len(SCENARIOS)]
        pair = Pair(model, random_limits(rng, scenario(rng)))
        preemptions = 0
        try:
            for preempted in history(pair, rng):
                totals["steps"] += 1
                preemptions += preempted
        except DifferenceError as error:
            raise SystemExit(f"seed {seed}, {scenario.__name__}, {pair.limits}: {error}") from error
        totals[scenario.__name__] = totals.get(scenario.__name__, 0) + preemptions
        totals["preemptions"] += preemptions
        totals["prefix_cache_hits"] += pair.looked_up[1]
    print(json.dumps(totals))


if __name__ == "__main__":
    main(
        sys.argv[1],
        int(sys.argv[2]) if len(sys.argv) > 2 else 42,
        int(sys.argv[3]) if len(sys.argv) > 3 else 0,
    )
