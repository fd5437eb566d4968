"""LMDeploy's own PyTorch scheduler against the twin's, pass by pass, without a GPU; exit 1 at a difference.

Run it by an interpreter that has lmdeploy 0.18 and a CPU build of torch, from the checkout:
    PYTHONPATH=. python tests/lmdeploy/scheduler_parity.py [--scenarios N] [--record]
Scheduler, InputsMakerAsync and EngineLoop are LMDeploy's as they are. Only what computes is replaced: a token
for each sequence, and the last when it has max_new_tokens. The credit that long prompts get for waiting goes
by the wall clock, so it is switched off. --record writes the fixture that CI replays.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

os.environ["LMDEPLOY_PT_TTFT_AGING_SEC"] = "1e9"  # LMDeploy reads it while it is imported
ROOT: Final = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/support"))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from lmdeploy.pytorch.config import CacheConfig, SchedulerConfig  # noqa: E402
from lmdeploy.pytorch.disagg.config import EngineRole  # noqa: E402
from lmdeploy.pytorch.engine.engine_loop import EngineLoop, EngineLoopConfig  # noqa: E402
from lmdeploy.pytorch.engine.inputs_maker import InputsMakerAsync, InputsMakerConfig  # noqa: E402
from lmdeploy.pytorch.engine.model_agent.agent import BatchedOutputs  # noqa: E402
from lmdeploy.pytorch.messages import MessageStatus, SamplingParam, SequenceMeta  # noqa: E402
from lmdeploy.pytorch.paging.scheduler import Scheduler  # noqa: E402
from lmdeploy.pytorch.strategies.ar.engine import AREngineStrategy  # noqa: E402
from lmdeploy.pytorch.strategies.ar.sequence import ARSequenceStrategy  # noqa: E402
from lmdeploy_replay import Add, Events, Seen, Twin, digest, packed  # noqa: E402

from estimator.twin.lmdeploy_limits import LmdeployLimits  # noqa: E402

FIXTURE: Final = ROOT / "tests/fixtures/lmdeploy/scheduler-0.18.json"
RECORDED_SCENARIOS: Final = 12
RECORDED_PASSES: Final = 100
PASSES: Final = 400


class Lmdeploy:
    """LMDeploy's scheduler, inputs maker and engine loop over a stub that computes."""

    def __init__(self, limits: LmdeployLimits) -> None:
        scheduling = SchedulerConfig(
            max_batches=limits.max_batch_size,
            max_session_len=limits.session_len,
            prefill_interval=limits.prefill_interval,
        )
        cache = CacheConfig(
            max_batches=limits.max_batch_size,
            block_size=limits.block_size,
            num_cpu_blocks=0,
            num_gpu_blocks=limits.num_gpu_blocks,
            max_prefill_token_num=limits.max_prefill_token_num,
            num_reserved_gpu_blocks=limits.reserved_blocks,
        )
        strategy = ARSequenceStrategy()
        self.scheduler = Scheduler(scheduling, cache, SequenceMeta(limits.block_size, strategy=strategy))
        executor = SimpleNamespace(
            device_type="cpu", forward_async=self._forward, get_output_async=self._compute
        )
        nothing = SimpleNamespace(
            num_adapters=lambda: 1,
            make_sampling_inputs=lambda _: None,
            make_extra_inputs=lambda *_: None,
            make_stopping_criteria=lambda _: None,
        )
        self.maker = InputsMakerAsync(
            executor=executor,
            scheduler=self.scheduler,
            state_checkpoints=self.scheduler.state_checkpoints,
            adapter_manager=nothing,
            engine_strategy=AREngineStrategy(scheduling, cache),
            sampling_strategy=nothing,
            model_agent_strategy=nothing,
            config=InputsMakerConfig(
                max_batches=limits.max_batch_size,
                max_prefill_token_num=limits.max_prefill_token_num,
                role=EngineRole.Hybrid,
                block_size=limits.block_size,
                kernel_block_size=limits.block_size,
                window_size=-1,
                enable_prefix_caching=False,
                prefix_cache_decode_state_interval=0,
                prefill_interval=limits.prefill_interval,
            ),
        )
        self.loop = EngineLoop(
            req_manager=None,
            scheduler=self.scheduler,
            state_checkpoints=self.scheduler.state_checkpoints,
            executor=executor,
            seq_strategy=strategy,
            inputs_maker=self.maker,
            config=EngineLoopConfig(role=EngineRole.Hybrid),
        )
        self._forward_inputs: Any = None
        self._next: Any = None
        self._events = Events()
        self._seen: dict[str, Any] = {}

    async def turn(self, events: Events) -> Seen:
        """One round of EngineLoop.main_loop."""
        self._events = events
        self._add(events.adds)
        if self._next is None:
            self._forward_inputs, self._next = await self.maker.send_next_inputs()
        if self._next is None:
            raise RuntimeError("LMDeploy finds nothing to run")
        self.scheduler.activate_seqs(self._next)
        self._running = self._next
        self._inputs = self._forward_inputs["inputs"]
        self._forward_inputs, self._next = await self.loop._main_loop_get_outputs(
            running=self._next, forward_inputs=self._forward_inputs
        )
        self.maker.preempt_invalid_decode_seqs()
        emitted = tuple(sorted(self.loop.resp_queue.get_nowait())) if not self.loop.resp_queue.empty() else ()
        for sequence in list(self._running):
            if sequence.status == MessageStatus.STOPPED and sequence.session_id in self.scheduler.sessions:
                self.scheduler.end_session(sequence.session_id)
        return Seen(**self._seen, emitted=emitted)

    async def _forward(self, _inputs: object) -> None: ...

    async def _compute(self) -> BatchedOutputs:
        """Called when the next pass has been decided and the current one is about to yield."""
        running = self._running
        tokens = [1] * len(running) if self._inputs is None else self._inputs.seq_length.tolist()
        reading = [count for count in tokens if count > 1]
        by_status = self.scheduler.seq_manager.get_sequences
        tables = {
            sequence.session_id: self.scheduler.block_manager.get_block_table(sequence).tolist()
            for sequence in self.scheduler.seq_manager.get_all_sequences()
        }
        self._seen = {
            "batch": tuple(sequence.session_id for sequence in running),
            "prefill_tokens": sum(reading),
            "decoding": len(tokens) - len(reading),
            "running": tuple(sorted(s.session_id for s in by_status(MessageStatus.RUNNING).values())),
            "waiting": tuple(
                s.session_id
                for status in (MessageStatus.WAITING, MessageStatus.READY)
                for s in by_status(status).values()
            ),
            "tables": digest(tables),
        }
        self._add(self._events.late_adds)
        for number in self._events.aborts:
            self.scheduler.stop_session(number)
            self.scheduler.end_session(number)
        stopped = [s.num_new_tokens + 1 >= s.sampling_param.max_new_tokens for s in running]
        return BatchedOutputs(
            next_token_ids=torch.zeros(len(running), dtype=torch.long), stopped=torch.tensor(stopped)
        )

    def _add(self, adds: tuple[Add, ...]) -> None:
        for number, prompt_tokens, output_tokens in adds:
            session = self.scheduler.add_session(number)
            sampling = SamplingParam(max_new_tokens=output_tokens)
            sequence = session.add_sequence(np.zeros(prompt_tokens, dtype=np.int64), sampling_param=sampling)
            sequence.resp = SimpleNamespace(_input_logprobs=None, data=None)


def limits_of(rng: random.Random) -> LmdeployLimits:
    """A pool for a few requests, so that it is always short."""
    return LmdeployLimits(
        backend="pytorch",
        num_gpu_blocks=rng.randint(6, 40),
        max_batch_size=rng.randint(2, 16),
        max_prefill_token_num=rng.choice((64, 128, 300, 1024)),
        session_len=4096,
        block_size=rng.choice((16, 32, 64)),
        prefill_interval=rng.choice((1, 4, 16)),
    )


def events_of(rng: random.Random, twin: Twin, made: int) -> Events:
    """What happens in the next round: never more requests than LMDeploy has handles."""
    limits = twin.engine.limits
    longest = limits.tokens_max_of_any

    def add(number: int) -> Add:
        # Most prompts are small against the pool and grow in it; some fill it at once.
        prompt = rng.randint(1, max(1, longest // 8 if rng.random() < 0.8 else longest * 2 // 3))
        return number, prompt, min(rng.randint(1, 200), longest - prompt)

    in_flight = twin.in_flight
    free = limits.max_batch_size - len(in_flight)
    wanted = 0 if longest < 3 or rng.random() < 0.5 else rng.randint(0, free)
    wanted = max(wanted, not twin.engine.has_work)
    adds = [add(made + number) for number in range(wanted)]
    late = rng.randint(0, len(adds)) if twin.engine.has_work else 0
    aborts = rng.sample(in_flight, 1) if in_flight and rng.random() < 0.02 else []
    return Events(adds=tuple(adds[late:]), late_adds=tuple(adds[:late]), aborts=tuple(aborts))


async def compare(seed: int, passes: int) -> tuple[dict[str, Any], int, str]:
    """The recorded scenario, preemptions in it, and the first difference or ""."""
    rng = random.Random(seed)
    limits = limits_of(rng)
    twin, theirs = Twin(limits), Lmdeploy(limits)
    rows, made = [], 0
    for number in range(passes):
        events = events_of(rng, twin, made)
        made += len(events.adds) + len(events.late_adds)
        try:
            seen = await theirs.turn(events)
        except RuntimeError as error:
            return {}, 0, f"seed {seed}, pass {number}: {error}: {limits} {events}"
        ours = twin.turn(events)
        rows.append(packed(events, seen))
        if ours != seen:
            return (
                {},
                0,
                f"seed {seed}, pass {number}: {limits}\n  {events}\n  lmdeploy {seen}\n  twin     {ours}",
            )
    return {"limits": asdict(limits), "passes": rows}, twin.engine.stats.preemptions, ""


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenarios", type=int, default=100)
    parser.add_argument("--record", action="store_true")
    flags = parser.parse_args()
    different, preempted = 0, {}
    for seed in range(flags.scenarios):
        _, preempted[seed], difference = await compare(seed, PASSES)
        if difference:
            different += 1
            print(difference)
    if flags.record and not different:
        fullest = sorted(preempted, key=lambda seed: -preempted[seed])[:RECORDED_SCENARIOS]
        recorded = [(await compare(seed, RECORDED_PASSES))[0] for seed in sorted(fullest)]
        FIXTURE.parent.mkdir(exist_ok=True)
        body = {"source": "LMDeploy 0.18.0", "scenarios": recorded}
        FIXTURE.write_text(json.dumps(body, separators=(",", ":")) + "\n", encoding="utf-8")
    passes, lost = flags.scenarios * PASSES, sum(preempted.values())
    print(f"{flags.scenarios} scenarios, {passes} passes, {lost} preemptions: {different} differ")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
