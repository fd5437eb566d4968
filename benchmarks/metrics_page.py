"""python benchmarks/metrics_page.py: the cost of reading a /metrics page, beside prometheus_client's."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from loadtest.collector.engine_metrics import read_engine_page

PAGE = Path(__file__).parents[1] / "tests/fixtures/metrics/vllm-0.32-loaded.txt"
ROUNDS = 50


def best_ms(read: Callable[[str], object], text: str) -> float:
    """The fastest of ROUNDS, because everything else on the machine only ever adds time."""
    times_s = []
    for _ in range(ROUNDS):
        started_s = time.perf_counter()
        read(text)
        times_s.append(time.perf_counter() - started_s)
    return min(times_s) * 1000


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    ours_ms = best_ms(read_engine_page, text)
    theirs_ms = best_ms(lambda page: list(text_string_to_metric_families(page)), text)
    print(f"page                {len(text) / 1000:8.1f} kB in {text.count(chr(10))} lines")
    print(f"read_engine_page    {ours_ms:8.2f} ms")
    print(f"prometheus_client   {theirs_ms:8.2f} ms, {theirs_ms / ours_ms:.1f} times that")


if __name__ == "__main__":
    main()
