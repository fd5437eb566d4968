"""Drives vLLM's own Scheduler and the twin's Engine side by side and stops at the first difference.

Run by the Python of the vLLM environment: `python tests/vllm/scheduler_parity.py MODEL_DIR [CONFIGS]`.
Both get the same arrivals and aborts; after every step the scheduled tokens, both queues in order, every
block id, the free blocks and the requests that gained a token must be equal. vLLM runs without async
scheduling: the twin has one step in flight.
"""

from __future__ import annotations

import json
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
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from estimator.twin.engine import Engine, EngineLimits

REQUESTS = 60
ARRIVALS = (0, 0, 0, 1, 1, 2, 5)  # new requests before a step, drawn from these
ABORT_SHARE = 0.03


def random_limits(rng: random.Random) -> EngineLimits:
    """Small pools, so that queues, chunks and preemptions all occur."""
    blocks, seqs = rng.choice([12, 20, 40, 80]), rng.choice([3, 8, 32])
    return EngineLimits(
        num_gpu_blocks=blocks,
        block_size=32,
        max_num_seqs=seqs,
        max_num_batched_tokens=max(seqs, rng.choice([32, 64, 200, 2048])),
        max_model_len=rng.choice([256, min(320, (blocks - 1) * 32)]),
    )


def vllm_scheduler(model: str, limits: EngineLimits) -> Any:
    config = EngineArgs(
        model=model,
        max_model_len=limits.max_model_len,
        block_size=limits.block_size,
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        num_gpu_blocks_override=limits.num_gpu_blocks,
        enable_prefix_caching=False,
        async_scheduling=False,
        enforce_eager=True,
        load_format="dummy",
    ).create_engine_config()
    config.cache_config.num_gpu_blocks = limits.num_gpu_blocks
    spec = FullAttentionSpec(block_size=limits.block_size, num_kv_heads=1, head_size=1, dtype=torch.float32)
    return Scheduler(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(
            num_blocks=limits.num_gpu_blocks,
            kv_cache_tensors=[],
            kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)],
        ),
        structured_output_manager=StructuredOutputManager(config),
        block_size=limits.block_size,
        log_stats=True,
    )


class Pair:
    """The two schedulers, fed alike."""

    def __init__(self, model: str, limits: EngineLimits) -> None:
        self.limits = limits
        self.theirs = vllm_scheduler(model, limits)
        self.ours = Engine(limits)

    def add(self, request_id: str, prompt_tokens: int, output_tokens: int) -> None:
        sampling = SamplingParams(
            max_tokens=min(output_tokens, self.limits.max_model_len - prompt_tokens), ignore_eos=True
        )
        self.theirs.add_request(
            Request(
                request_id=request_id,
                prompt_token_ids=[1] * prompt_tokens,
                sampling_params=sampling,
                pooling_params=None,
            )
        )
        self.ours.add(request_id, prompt_tokens, output_tokens)

    def abort(self, request_id: str) -> None:
        self.theirs.finish_requests(request_id, RequestStatus.FINISHED_ABORTED)
        self.ours.abort(request_id)

    def step(self) -> int:
        """One step of both, compared; returns the preemptions in it."""
        before = {r.request_id: r.computed_tokens for r in (*self.ours.running, *self.ours.waiting)}
        their_step, our_step = self.theirs.schedule(), self.ours.step()
        admitted = {r.request_id for r in our_step.admitted}
        scheduled = {
            r.request_id: r.computed_tokens - (0 if r.request_id in admitted else before[r.request_id])
            for r in our_step.batch
        }
        same("scheduled tokens", list(their_step.num_scheduled_tokens.items()), list(scheduled.items()))
        for queue in ("running", "waiting"):
            theirs, ours = getattr(self.theirs, queue), getattr(self.ours, queue)
            same(queue, [r.request_id for r in theirs], [r.request_id for r in ours])
        same("block ids", self._their_blocks(), {r.request_id: r.blocks for r in self.ours.running})
        pool = self.theirs.kv_cache_manager.block_pool
        same("free blocks", pool.get_num_free_blocks(), self.ours.pool.free_blocks)
        emitted = self._settle_theirs(their_step)
        same("emitted", emitted, [r.request_id for r in self.ours.settle(our_step).emitted])
        return len(our_step.preempted)

    def _their_blocks(self) -> dict[str, list[int]]:
        blocks = self.theirs.kv_cache_manager.coordinator.single_type_managers[0].req_to_blocks
        return {r.request_id: [block.block_id for block in blocks[r.request_id]] for r in self.theirs.running}

    def _settle_theirs(self, step: Any) -> list[str]:
        ids = list(step.num_scheduled_tokens)
        requests = [self.theirs.requests[request_id] for request_id in ids]
        tokens = [[7] if r.num_computed_tokens >= r.num_tokens else [] for r in requests]
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


def same(what: str, theirs: object, ours: object) -> None:
    if theirs != ours:
        raise SystemExit(f"{what} differ\n vLLM: {theirs}\n twin: {ours}")


def history(pair: Pair, rng: random.Random) -> Iterator[int]:
    """Preemptions of each step until every request has ended."""
    made: list[str] = []
    while len(made) < REQUESTS or pair.ours.has_work:
        for _ in range(rng.choice(ARRIVALS) if len(made) < REQUESTS else 0):
            prompt_tokens = rng.randint(1, min(pair.limits.max_model_len - 1, 150))
            made.append(f"r{len(made)}")
            pair.add(made[-1], prompt_tokens, rng.randint(1, 120))
        if made and rng.random() < ABORT_SHARE:
            pair.abort(rng.choice(made))
        if pair.ours.has_work:
            yield pair.step()


def main(model: str, configs: int) -> None:
    totals = {"configs": configs, "requests": configs * REQUESTS, "steps": 0, "preemptions": 0}
    for seed in range(configs):
        rng = random.Random(seed)
        for preemptions in history(Pair(model, random_limits(rng)), rng):
            totals["steps"] += 1
            totals["preemptions"] += preemptions
    print(json.dumps(totals))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 40)
