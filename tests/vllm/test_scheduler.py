"""The twin's scheduler against vLLM's own, step by step."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from vllm_server import ROOT, VLLM_PYTHON, model_in


def test_the_twin_schedules_as_vllm_does_block_for_block(vllm_folder: Path) -> None:
    done = subprocess.run(
        [VLLM_PYTHON, ROOT / "tests/vllm/scheduler_parity.py", model_in(vllm_folder), "45"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    totals = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"\nequal to vLLM's scheduler over {totals}")
    assert totals["preemptions"] > 50, "too few preemptions to prove anything"
    assert totals["prefix_cache_hits"] > 1000, "too few hits to prove anything"
