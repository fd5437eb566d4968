"""python benchmarks/walls.py: is the wall that is named the one that was built?

Eight causes, each built into simulated servers or clients (--seeds 5), under the virtual clock: five loads up
to twice the limit, and what the report says stopped them.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from known_walls import CAUSES, known_wall  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    seeds = parser.parse_args().seeds
    right = 0
    print(f"{'built':<10} {'named':<24} {'runner-up':<24} an example's evidence")
    for cause in CAUSES:
        walls = [known_wall(cause, seed).observe().wall for seed in range(seeds)]
        named = Counter(wall.name for wall in walls)
        second = Counter(wall.runner_up.name if wall.runner_up else "-" for wall in walls)
        right += named[cause]  # type: ignore[index]
        print(f"{cause:<10} {_counts(named):<24} {_counts(second):<24} {walls[0].evidence}", flush=True)
    print(f"{right} of {seeds * len(CAUSES)} named right")
    return 0


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counter.most_common())


if __name__ == "__main__":
    sys.exit(main())
