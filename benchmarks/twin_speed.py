"""python benchmarks/twin_speed.py: how much faster than real time the virtual clock runs, on one core.

The goals: 200 x real time for the first large case, 100,000 requests a minute for the second.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from estimator.spec import Workload
from estimator.twin.cost import StepCost
from estimator.twin.engine import EngineLimits
from estimator.twin.virtual import ClosedLoop, closed_loop

REPEATS = 3  # the best counts: other work on the machine only ever adds

# About 30 ms a step with 256 requests of 1,024 + 256 tokens running.
LARGE_COST = StepCost(
    fixed_s=0.006, compute_s_per_token=1e-5, weights_s=0.008, context_s_per_token=4e-8, sequence_s=1.5e-5
)
SMALL_COST = StepCost(
    fixed_s=0.002, compute_s_per_token=3e-5, weights_s=0.004, context_s_per_token=2e-8, sequence_s=1e-4
)
LARGE = EngineLimits(
    num_gpu_blocks=40_000, block_size=16, max_num_seqs=256, max_num_batched_tokens=8192, max_model_len=8192
)
SMALL = EngineLimits(
    num_gpu_blocks=512, block_size=32, max_num_seqs=64, max_num_batched_tokens=2048, max_model_len=2048
)
CASES = (
    (
        "large, 256 users of 1024 + 256",
        LARGE,
        LARGE_COST,
        ClosedLoop(users=256, until_s=120.0, workload=Workload.constant(1024, 256), ramp_s=8.0),
    ),
    (
        "large, 256 users of 500 + 150",
        LARGE,
        LARGE_COST,
        ClosedLoop(users=256, until_s=120.0, workload=Workload.constant(500, 150), ramp_s=4.0),
    ),
    (
        "small and fits, 31 users of 256 + 256",
        SMALL,
        SMALL_COST,
        ClosedLoop(users=31, until_s=60.0, workload=Workload.constant(256, 256)),
    ),
    (
        "small and overloaded, 64 users of 256 + 256",
        SMALL,
        SMALL_COST,
        ClosedLoop(users=64, until_s=60.0, workload=Workload.constant(256, 256)),
    ),
)


def main() -> None:
    for name, limits, cost, loop in CASES:
        cpu_s = float("inf")
        for _ in range(REPEATS):
            started_s = time.process_time()
            history = closed_loop(limits, cost, loop)
            cpu_s = min(cpu_s, time.process_time() - started_s)
        simulated_s = history.steps[-1].at_s + history.steps[-1].duration_s
        steps = len(history.steps)
        print(
            f"{name}: {simulated_s / cpu_s:,.0f}x real time, "
            f"{60 * len(history.requests) / cpu_s:,.0f} requests/min, "
            f"{1e3 * simulated_s / steps:.1f} ms and {1e6 * cpu_s / steps:.0f} us of CPU a step"
        )


if __name__ == "__main__":
    main()
