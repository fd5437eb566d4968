"""python benchmarks/twin_speed.py: how much faster than real time the virtual clock runs, on one core."""

from __future__ import annotations

import time
from dataclasses import replace

from estimator.spec import Workload
from estimator.twin.profile import read_profile
from estimator.twin.virtual import ClosedLoop, closed_loop

# A large GPU: 256 running requests of 1,024 + 256 tokens, about 30 ms a step.
LARGE = {"num_gpu_blocks": 40_000, "block_size": 16, "max_num_seqs": 256, "max_num_batched_tokens": 8192}
CASES = (
    (
        "tiny, 31 users of 256 + 256",
        {},
        ClosedLoop(users=31, until_s=60.0, workload=Workload.constant(256, 256)),
    ),
    (
        "tiny, 64 users of 256 + 256",
        {},
        ClosedLoop(users=64, until_s=60.0, workload=Workload.constant(256, 256)),
    ),
    (
        "large, 256 users of 1024 + 256",
        LARGE,
        ClosedLoop(users=256, until_s=60.0, workload=Workload.constant(1024, 256)),
    ),
)


def main() -> None:
    profile = read_profile("tiny")
    for name, changes, loop in CASES:
        case = replace(profile, **changes)
        started_s = time.process_time()
        history = closed_loop(case.limits, case.step_cost, loop)
        cpu_s = time.process_time() - started_s
        simulated_s = history.steps[-1].at_s + history.steps[-1].duration_s
        steps = len(history.steps)
        print(
            f"{name}: {simulated_s / cpu_s:,.0f}x real time, "
            f"{60 * len(history.requests) / cpu_s:,.0f} requests/min, "
            f"{1e3 * simulated_s / steps:.1f} ms and {1e6 * cpu_s / steps:.0f} us of CPU a step"
        )


if __name__ == "__main__":
    main()
