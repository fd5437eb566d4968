"""Servers and clients whose wall is known because they were made so; everything else leaves room."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from fake_run import FakeRun
from twin_rows import SETTLE_S, Client, TwinRun

from estimator.spec import Lengths, Workload
from estimator.twin.cost import FrontEndCost, ServerCost, StepCost
from estimator.twin.limits import EngineLimits
from loadtest.reporter.observation import Observation
from loadtest.reporter.saturation import observe
from loadtest.scenario import Limits

BLOCK = 16
LEVELS = (0.5, 0.75, 1.0, 1.5)
"""Of the number that the wall stands at."""


@dataclass(frozen=True, kw_only=True)
class KnownWall:
    run: TwinRun
    limits: Limits

    def observe(self) -> Observation:
        manifest = FakeRun(stages=(), limits=self.limits).manifest
        assert manifest.scenario["settle_s"] == SETTLE_S
        return observe(self.run.rows(), manifest, self.run.limits.max_num_seqs)


def known_wall(cause: str, seed: int) -> KnownWall:
    rng = random.Random(f"{cause} {seed}")
    return CAUSES[cause](rng, seed)


def _around(mean: int) -> Lengths:
    return Lengths(kind="uniform", min=max(1, mean // 2), max=mean + mean // 2)


def _roomy(rng: random.Random, seed: int, n: int) -> KnownWall:
    """A server that holds far more than twice `n` requests."""
    workload = Workload(
        input_tokens=_around(rng.randint(200, 400)), output_tokens=_around(rng.randint(100, 200))
    )
    blocks = 8 * n * (workload.longest_tokens // BLOCK + 1)
    return KnownWall(
        run=TwinRun(
            limits=EngineLimits(
                num_gpu_blocks=blocks,
                block_size=BLOCK,
                max_num_seqs=8 * n,
                max_num_batched_tokens=4096,
                max_model_len=workload.longest_tokens,
            ),
            cost=ServerCost(
                step=StepCost(
                    fixed_s=0.005,
                    compute_s_per_token=1e-5 * (1 + rng.random()),
                    weights_s=0.03,
                    context_s_per_token=1e-7,
                    sequence_s=2e-5,
                )
            ),
            workload=workload,
            users=tuple(round(n * ratio) for ratio in LEVELS),
            seed=seed,
        ),
        limits=Limits(ttft_s=2.0, tpot_s=0.2),
    )


def _engine(known: KnownWall, **limits: int) -> KnownWall:
    return _run(known, limits=replace(known.run.limits, **limits))


def _run(known: KnownWall, **parts: Any) -> KnownWall:
    return replace(known, run=replace(known.run, **parts))


def _step(known: KnownWall, **costs: float) -> KnownWall:
    cost = known.run.cost
    return _run(known, cost=replace(cost, step=replace(cost.step, **costs)))


def _kv(rng: random.Random, seed: int) -> KnownWall:
    n = rng.randint(10, 24)
    known = _roomy(rng, seed, n)
    return _engine(known, num_gpu_blocks=n * (known.run.workload.longest_tokens // BLOCK + 1) * 3 // 4)


def _slots(rng: random.Random, seed: int) -> KnownWall:
    n = rng.randint(10, 24)
    return _engine(_roomy(rng, seed, n), max_num_seqs=n)


def _prefill(rng: random.Random, seed: int) -> KnownWall:
    """Long prompts, short answers: each step's token budget is spent on prompts."""
    known = _roomy(rng, seed, rng.randint(6, 12))
    lengths = Workload(input_tokens=_around(rng.randint(3000, 4000)), output_tokens=_around(20))
    known = _engine(known, num_gpu_blocks=40_000, max_num_batched_tokens=2048, max_model_len=7000)
    known = _step(_run(known, workload=lengths, users=(3, 6, 12, 24)), compute_s_per_token=1e-4)
    return replace(known, limits=Limits(e2e_s=60.0))


def _slo(rng: random.Random, seed: int) -> KnownWall:
    """Every sequence of a step costs time, and the limit on TPOT is what n of them take."""
    n = rng.randint(10, 24)
    known = _step(_roomy(rng, seed, n), sequence_s=1e-3)
    return replace(known, limits=Limits(ttft_s=5.0, tpot_s=0.037 + 1.1e-3 * n))


def _plateau(rng: random.Random, seed: int) -> KnownWall:
    """The same without a limit that could break: more users only wait longer for each token."""
    n = rng.randint(16, 24)
    known = _step(
        _roomy(rng, seed, n), fixed_s=1e-4, weights_s=1e-3, sequence_s=2e-3, compute_s_per_token=1e-6
    )
    lengths = replace(known.run.workload, output_tokens=_around(40))
    return replace(_run(known, workload=lengths), limits=Limits(e2e_s=600.0))


def _network(rng: random.Random, seed: int) -> KnownWall:
    """A front end that cannot write as fast as the engine makes tokens."""
    n = rng.randint(10, 24)
    known = _roomy(rng, seed, n)
    front_end = FrontEndCost(request_s=0.01, request_cpu_s=(4.0 + rng.random()) / n, chunk_s=5e-4)
    return replace(_run(known, cost=replace(known.run.cost, front_end=front_end)), limits=Limits(ttft_s=1.0))


def _admission(rng: random.Random, seed: int) -> KnownWall:
    n = rng.randint(10, 24)
    return _run(_roomy(rng, seed, n), client=Client(admits=n))


def _client(rng: random.Random, seed: int) -> KnownWall:
    """It is the bottleneck of a server whose cache would be full as well."""
    client = Client(lateness_s=0.05 + 0.1 * rng.random(), cpu_ratio=0.97, loop_lag_s=0.12)
    return _run(_kv(rng, seed), client=client)


CAUSES: dict[str, Callable[[random.Random, int], KnownWall]] = {
    "client": _client,
    "network": _network,
    "admission": _admission,
    "kv": _kv,
    "slots": _slots,
    "prefill": _prefill,
    "slo": _slo,
    "plateau": _plateau,
}
