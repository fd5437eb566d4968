"""What is compared: the same figures of a load, once from a real server and once from the twin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from twin_cases import Server, Wall

DEFAULT_BATCHED_TOKENS = 2048
"""vLLM 0.32's --max-num-batched-tokens on a CPU for a server (read back from its log by the test)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Means over the measured window; latencies as clients saw them, seconds."""

    running: float
    waiting: float
    kv_usage: float
    preemptions_per_request: float
    output_tokens_per_s: float
    ttft_p50_s: float
    ttft_p95_s: float
    tpot_p50_s: float
    step_tokens: float
    requests: float


def quantile(values: Sequence[float], share: float) -> float:
    """The value at that share of the sorted ones, between neighbours in proportion; 0 of none."""
    ordered = sorted(values)
    if not ordered:
        return 0.0
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def wall_of(figures: Figures, server: Server) -> Wall:
    """Why requests wait: one rule for both sides, in order of evidence."""
    slots = server.number("--max-num-seqs", 128)
    batched = server.number("--max-num-batched-tokens", DEFAULT_BATCHED_TOKENS)
    if figures.waiting < 0.5 and figures.preemptions_per_request < 0.01:
        return "none"
    if figures.running > 0.95 * slots:
        return "slots"
    if figures.step_tokens > 0.8 * batched:
        return "prefill"
    return "kv" if figures.kv_usage > 0.8 else "none"
