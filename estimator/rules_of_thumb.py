"""The textbook formulas in words, where each misleads, and those that need no model.

The sizes of a model are in textbook_memory.py, the fitted line in line_fit.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from estimator.spec import SpecError


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A formula in words, and one sentence on when its answer is wrong."""

    formula: str
    misleads: str


RULES: Final[Mapping[str, Rule]] = {
    "weights": Rule(
        formula="weights = parameters x bytes of one",
        misleads=(
            "The product comes in GB (10**9) while CUDA and vLLM count GiB (2**30), 7% fewer, and a name "
            "rounds: Llama-2-7B has 6.74 billion parameters."
        ),
    ),
    "quantisation": Rule(
        formula="weights = parameters x 4 bytes / (32 / bits)",
        misleads=(
            "Only linear layers shrink, embeddings and norms stay at 16 bits, and scales come on top: 4 bits "
            "are 4.2 to 4.5 where they apply."
        ),
    ),
    "kv_cache": Rule(
        formula="KV cache = 2 x layers x heads x head_dim x length x batch x bytes",
        misleads=(
            "With attention heads it is too high by attention heads / KV heads, often 4 to 8, and it holds "
            "for neither latent attention nor sliding windows nor recurrent layers."
        ),
    ),
    "activation": Rule(
        formula="activations = hidden_size x length x batch x layers x bytes",
        misleads=(
            "Inference keeps the activations of one layer at a time, and the engine limits them to "
            "max_num_batched_tokens, whatever the length and the batch."
        ),
    ),
    "overhead": Rule(
        formula="overhead = 10% to 20% of weights",
        misleads=(
            "CUDA's context, graphs and collective buffers do not follow the weights: the share of a 72B "
            "model is ten times that of a 7B model, for nearly the same need."
        ),
    ),
    "inference": Rule(
        formula="memory = weights x 1.2",
        misleads=(
            "The KV cache follows concurrency and context length, not the weights: a small model with long "
            "contexts needs many times its weights."
        ),
    ),
    "total": Rule(
        formula="total = weights + overhead + KV cache + activations",
        misleads=(
            "An engine reserves its whole KV cache at start-up, so the GPU looks as full with no request as "
            "with a hundred."
        ),
    ),
    "growth": Rule(
        formula="total = (weights + overhead) + requests x (KV cache + activations of one)",
        misleads=(
            "In an engine only the KV cache grows, by whole blocks and with every token generated; "
            "activations stop at max_num_batched_tokens."
        ),
    ),
    "requests": Rule(
        formula="requests = free VRAM / VRAM of one request = X GiB x 1024 / Y MiB",
        misleads=(
            "One figure a request hides its length: memory is held in blocks that grow with every token, "
            "and the engine takes the cache at start-up, so nvidia-smi's free memory says nothing."
        ),
    ),
    "reserve": Rule(
        formula="promise = requests x (1 - 20%)",
        misleads=(
            "A reserve pays for what varies and not for a wrong formula, and once a second person takes it "
            "again it is 36%."
        ),
    ),
    "training": Rule(
        formula="memory = weights + gradients + optimiser states + 1.3 GB of CUDA kernels",
        misleads=(
            "It leaves out activations, often the largest part, and takes gradients and states to be as "
            "narrow as the weights, which int8 training is not."
        ),
    ),
    "mixed_training": Rule(
        formula="memory = 16 bytes x parameters",
        misleads="It leaves out activations; sharding or offloading divides it; serving needs none of it.",
    ),
    "gpu_flops": Rule(
        formula="FLOPS = cores x clock x operations a clock",
        misleads=(
            "It counts CUDA cores, while tensor cores do an LLM's work up to sixteen times as fast, and "
            "decoding waits for memory bandwidth instead."
        ),
    ),
    "prefill": Rule(
        formula="prefill tokens/s = FLOPS / (2 x active parameters)",
        misleads="Nothing reaches peak FLOPS, and attention adds work that grows with the context.",
    ),
    "moe": Rule(
        formula="memory follows total parameters, work follows active parameters",
        misleads=(
            "The tokens of a large batch reach nearly every expert, so decoding reads the total from memory "
            "and not the active share."
        ),
    ),
    "line": Rule(
        formula="memory = base + slope x input length, fitted to measured peaks",
        misleads=(
            "A peak includes working memory that is freed again: ChatGLM2-6B's slope is eight times its KV "
            "cache, and dividing by it promises an eighth of what fits."
        ),
    ),
    "threads": Rule(
        formula="memory = resident + (peak - resident) x threads",
        misleads=(
            "It adds up peaks that never meet: an engine runs one batch at a time however many threads ask, "
            "from a pool reserved before the first of them."
        ),
    ),
}


def textbook_requests(free_vram_gib: float, per_request_mib: float) -> int:
    """floor(X x 1024 / Y), in exact fractions: 2 GiB and 8 MiB -> 256. Raises SpecError below zero."""
    return math.floor(
        _quantity("--free-vram-gib", free_vram_gib, least=0)
        * 1024
        / _quantity("--per-request-mib", per_request_mib)
    )


def threads_bytes(resident_bytes: int, peak_bytes: int, threads: int) -> int:
    """Rule 'threads', bytes: what stays between requests, and every thread's share of the peak above it."""
    if threads < 1:
        raise SpecError(f"threads must be 1 or more, got {threads}")
    if not 0 <= resident_bytes <= peak_bytes:
        raise SpecError(
            f"resident_bytes must be 0 or more and at most peak_bytes, got {resident_bytes} and {peak_bytes}"
        )
    return resident_bytes + (peak_bytes - resident_bytes) * threads


def gpu_flops_per_s(cores: int, clock_mhz: int, operations_per_clock: int = 2) -> int:
    """Rule 'gpu_flops': 1280 cores at 1400 MHz with 2 operations (one multiply-add) are 3.584e12 a second."""
    return cores * clock_mhz * 10**6 * operations_per_clock


def prefill_tokens_per_s(flops_per_s: float, active_parameters: int) -> float:
    """Rule 'prefill': two operations for each active parameter and token, tokens per second."""
    return flops_per_s / (2 * active_parameters)


def _quantity(flag: str, value: float, *, least: float | None = None) -> Fraction:
    if not math.isfinite(value) or (value <= 0 if least is None else value < least):
        raise SpecError(f"{flag} must be {'above' if least is None else 'at least'} 0, got {value}")
    return Fraction(str(value))
