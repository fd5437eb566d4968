"""Drives vLLM's own Scheduler and the twin's Engine side by side and stops at the first difference.

Run by the Python of the vLLM environment: `python tests/vllm/scheduler_parity.py MODEL_DIR [CONFIGS [SEED]]`.
Both get the same arrivals and aborts; after every step the scheduled tokens, both queues in order, every
block id, the free blocks and the requests that gained a token must be equal. Half of the configurations have
two steps in flight, in the order of vLLM's step_with_batch_queue, and vLLM's AsyncScheduler on its side.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", VLLM_CPU_KVCACHE_SPACE="1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from parity_cases import SCENARIOS, encoder_inputs, random_limits, vllm_scheduler
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from estimator.spec import SpecError
from estimator.twin.engine import Engine, EngineLimits, Step

REQUESTS = 60
ARRIVALS = (0, 0, 0, 1, 1, 2, 5)  # new requests before a step, drawn from these
ABORT_SHARE = 0.02
LONGEST_PROMPT = 150


class Pair:
    """The two schedulers, fed alike."""

    def __init__(self, model: str, limits: EngineLimits) -> None:
        self.limits = limits
        self.theirs = vllm_scheduler(model, limits)
        self.ours = Engine(limits)
        self.looked_up = [0, 0]
        self.in_flight: deque[tuple[Any, dict[str, bool], Step]] = deque()
        """For each step theirs, which of its requests get a token, and ours."""
        self.known: dict[str, Any] = {}
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
        self.known[request_id] = ours
        self.theirs.add_request(
            Request(
                request_id=request_id,
                prompt_token_ids=[token_at(ours, position) for position in range(prompt_tokens)],
                sampling_params=sampling,
                pooling_params=None,
                priority=priority,
                arrival_time=number,
                mm_features=encoder_inputs(self.limits, request_id),
                block_hasher=get_request_block_hasher(self.limits.cache_groups[0].block_size, sha256)
                if self.limits.enable_prefix_caching
                else None,
            )
        )
        return request_id

    def abort_some(self, made: list[str], rng: random.Random) -> None:
        if made and rng.random() < ABORT_SHARE:
            request_id = rng.choice(made)
            self.theirs.finish_requests(request_id, RequestStatus.FINISHED_ABORTED)
            self.ours.abort(request_id)

    def schedule(self) -> int:
        """A step of both, compared; returns the preemptions in it."""
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
        same("free blocks", *self._free_blocks())
        self._compare_prefix_cache()
        gains = {
            request_id: not self.theirs.requests[request_id].is_prefill_chunk
            for request_id in their_step.num_scheduled_tokens
        }
        self.in_flight.append((their_step, gains, our_step))
        return len(our_step.preempted)

    def settle(self) -> None:
        """The oldest step in flight, if there is one, ends in both."""
        if not self.in_flight:
            return
        their_step, gains, our_step = self.in_flight.popleft()
        emitted = self._settle_theirs(their_step, gains)
        same("emitted", emitted, [r.request_id for r in self.ours.settle(our_step).emitted])
        same("free blocks", *self._free_blocks())

    def _free_blocks(self) -> tuple[int, int]:
        return self.theirs.kv_cache_manager.block_pool.get_num_free_blocks(), self.ours.pool.free_blocks

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

    def _settle_theirs(self, step: Any, gains: dict[str, bool]) -> list[str]:
        ids = list(gains)
        here = {request_id: self.theirs.requests.get(request_id) for request_id in ids}
        tokens = [
            [token_at(self.known[request_id], request.num_tokens)] if request and gains[request_id] else []
            for request_id, request in here.items()
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
    while len(made) < REQUESTS or pair.ours.has_work or pair.in_flight:
        for _ in range(rng.choice(ARRIVALS) if len(made) < REQUESTS else 0):
            prompt_tokens = rng.randint(1, min(pair.limits.max_model_len - 1, LONGEST_PROMPT))
            try:
                made.append(pair.add(len(made), prompt_tokens, rng.randint(1, 120), rng))
            except SpecError:  # too long for this pool, so vLLM would let it wait for ever
                continue
        pair.abort_some(made, rng)
        if pair.ours.has_work:
            yield pair.schedule()
        pair.abort_some(made, rng)
        if len(pair.in_flight) == pair.limits.steps_in_flight or not pair.ours.has_work:
            pair.settle()


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
        key = f"{scenario.__name__} {pair.limits.steps_in_flight}"
        totals[key] = totals.get(key, 0) + preemptions
        totals["preemptions"] += preemptions
        totals["prefix_cache_hits"] += pair.looked_up[1]
    print(json.dumps(totals))


if __name__ == "__main__":
    main(
        sys.argv[1],
        int(sys.argv[2]) if len(sys.argv) > 2 else 42,
        int(sys.argv[3]) if len(sys.argv) > 3 else 0,
    )
