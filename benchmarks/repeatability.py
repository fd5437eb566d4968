"""Does the same server get the same verdict again? Against a real vLLM on the CPU, as `make vllm` installs.

`python benchmarks/repeatability.py` repeats a level far below the limit and one far above it (--repeats 10),
and a few searches (--searches 3), each a sign-off of its own, and prints how often they agree. 24 slots and a
limit on the first token make a limit that is known. Void runs, in which this machine was too busy to be
believed, say nothing of the server: they are counted apart.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "support")]

from vllm_server import Vllm, running  # noqa: E402

SLOTS = 24
LEVELS = {"below": (10, "PASS"), "above": (48, "FAIL")}
"""Users, and the verdict that is right."""
SERVER = (
    *("--max-model-len", "2048", "--block-size", "32", "--num-gpu-blocks-override", "512"),
    *("--max-num-seqs", str(SLOTS), "--no-enable-prefix-caching"),
)
SCENARIO = {"name": "repeatability", "input_tokens": 64, "settle_s": 4}
HELD = {"output_tokens": 32, "limits": {"goodput": "ttft:2000"}}
"""Short answers, so that half a minute is enough for a proof."""
SEARCHED = {
    "output_tokens": 128,
    "limits": {"goodput": "ttft:600"},
    "search": {"start_users": SLOTS, "users_max": 48, "max_minutes": 5, "settle_min_s": 5},
}
"""Long ones, so that the limit on the first token ends soon above the slots, whatever the machine's pace."""
HOLD_S = 28


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    status: str
    reason: str
    n_max: int

    @property
    def line(self) -> str:
        return f"{self.status:<13} n_max {self.n_max:<3} {self.reason}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--searches", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, running(Path(folder), arguments=SERVER) as server:
        for side, (users, right) in LEVELS.items():
            scenario = {**SCENARIO, **HELD, "stages": [{"users": users, "hold_s": HOLD_S}]}
            signed = _repeated(f"{side}, {users} users", asked.repeats, server, scenario)
            _say_verdicts(side, right, signed)
        _say_limits(_repeated("search", asked.searches, server, {**SCENARIO, **SEARCHED}))
    return 0


def _repeated(what: str, times: int, server: Vllm, scenario: dict[str, Any]) -> list[Signed]:
    signed = []
    for number in range(times):
        began_s = time.monotonic()
        # another seed each time: prompts and their order differ as they do from day to day
        signed.append(_signed(server, {**scenario, "seed": number + 1}))
        print(f"{what} {number + 1}: {signed[-1].line} ({time.monotonic() - began_s:.0f} s)", flush=True)
    return signed


def _signed(server: Vllm, scenario: dict[str, Any]) -> Signed:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "scenario.yaml"
        file.write_text(yaml.safe_dump(scenario), encoding="utf-8")
        command = [sys.executable, "-m", "loadtest.cli", "signoff", "--scenario", str(file)]
        command += ["--host", server.host, "--max-num-seqs", str(SLOTS), "--runs-dir", f"{folder}/runs"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        reports = list(Path(folder).glob("runs/*/report.json"))
        if not reports:
            raise SystemExit(f"no report was made: {done.stderr[-500:]}")
        report = json.loads(reports[0].read_text(encoding="utf-8"))
    return Signed(status=report["status"], reason=report["reason"], n_max=report["n_max"])


def _say_verdicts(side: str, right: str, signed: list[Signed]) -> None:
    counts = Counter(one.status for one in signed)
    told = len(signed) - counts["VOID"]
    print(
        f"{side}: {counts[right]} of {told} told {right}, {counts['VOID']} void; {dict(counts)}", flush=True
    )


def _say_limits(signed: list[Signed]) -> None:
    found = sorted(one.n_max for one in signed if one.status != "VOID")
    if found:
        middle = found[len(found) // 2]
        spread = (found[-1] - found[0]) / middle if middle else float("inf")
        print(f"searches: n_max {found} of {len(signed)}, spread {spread:.0%} of the median", flush=True)
    else:
        print(f"searches: all {len(signed)} void", flush=True)


if __name__ == "__main__":
    sys.exit(main())
