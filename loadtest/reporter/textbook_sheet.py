"""A model -> the figures of every textbook rule, each with its unit and its arithmetic. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from estimator.rules_of_thumb import (
    gpu_flops_per_s,
    prefill_tokens_per_s,
    textbook_requests,
    threads_bytes,
)
from estimator.textbook_memory import (
    ELEMENT_BITS,
    OPTIMISER_STATES,
    OVERHEAD_PERCENT,
    OVERHEAD_PERCENT_RANGE,
    InferenceMemory,
    TextbookModel,
    activation_bytes,
    gqa_kv_cache_bytes,
    inference_memory,
    kv_cache_bytes,
    mixed_training_bytes,
    overhead_bytes,
    padded_weights_bytes,
    quantisation_factor,
    training_memory,
    weight_bytes,
)
from estimator.units import GIB, MIB
from loadtest.reporter.buffer import BUFFER_RATIO, safe_limit

AT_ONCE: Final = (1, 10, 100)
EXAMPLE_REQUESTS: Final = (2, 8)
"""Free GiB, MiB of a request: shown where no GPU is named."""
EXAMPLE_GPU: Final = (1280, 1400, 2)
"""Cores, MHz, operations a clock: the worked example of GPU FLOPS."""
TRAINING_DTYPES: Final = ("fp32", "int8")
BYTE_SCALES: Final = ((3, "GB", "GiB"), (2, "MB", "MiB"), (1, "kB", "KiB"))
"""Power of 1000 and of 1024, and their two names."""

Unit = Literal["bytes", "times", "requests", "FLOP", "FLOPS", "tokens/s", "MiB/token"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextbookCase:
    """What the sheet is worked out for: `batch` requests of `tokens` each, and a GPU where one is known."""

    model: TextbookModel
    tokens: int
    batch: int = 1
    weight_dtype: str = "fp16"
    cache_dtype: str = "fp16"
    overhead_percent: int = OVERHEAD_PERCENT
    gpu_memory_bytes: int | None = None
    """What CUDA reports. None: the textbook's own example of free memory is shown."""
    gpu_flops_per_s: float | None = None

    def memory(self, batch: int) -> InferenceMemory:
        """Rule 'total' for so many requests at once."""
        return inference_memory(
            self.model,
            tokens=self.tokens,
            batch=batch,
            weight_dtype=self.weight_dtype,
            cache_dtype=self.cache_dtype,
            overhead_percent=self.overhead_percent,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One number of a rule, in `unit`, and the arithmetic or the words it comes from."""

    name: str
    value: float
    unit: Unit
    arithmetic: str


Figures = list[Figure]


def two_units(size_bytes: float) -> tuple[str, str]:
    """The same bytes in decimal and in binary units: 14e9 -> ('14.00 GB', '13.04 GiB')."""
    for power, decimal, binary in BYTE_SCALES:
        if size_bytes >= 1000**power:
            return f"{size_bytes / 1000**power:,.2f} {decimal}", f"{size_bytes / 1024**power:,.2f} {binary}"
    return f"{size_bytes:,.0f} B", f"{size_bytes:,.0f} B"


def _weights(case: TextbookCase) -> Figures:
    count = case.model.parameters
    return [
        _bytes(dtype, weight_bytes(count, dtype), f"{count:,} x {bits / 8:g} B")
        for dtype, bits in ELEMENT_BITS.items()
    ]


def _quantisation(case: TextbookCase) -> Figures:
    return [
        _in("times", dtype, float(quantisation_factor(dtype)), f"32 / {bits} bits")
        for dtype, bits in ELEMENT_BITS.items()
    ]


def _kv_cache(case: TextbookCase) -> Figures:
    model, tokens, batch, dtype = case.model, case.tokens, case.batch, case.cache_dtype
    textbook = kv_cache_bytes(model, tokens=tokens, batch=batch, dtype=dtype)
    grouped = gqa_kv_cache_bytes(model, tokens=tokens, batch=batch, dtype=dtype)
    size = f"{model.head_dim} x {tokens:,} x {batch:,} x {_width(case)}"
    return [
        _bytes("with attention heads", textbook, f"2 x {model.layers} x {model.attention_heads} x {size}"),
        _bytes("with KV heads", grouped, f"2 x {model.layers} x {model.kv_heads} x {size}"),
    ]


def _activation(case: TextbookCase) -> Figures:
    model, tokens, batch = case.model, case.tokens, case.batch
    size = activation_bytes(model, tokens=tokens, batch=batch, dtype=case.cache_dtype)
    arithmetic = f"{model.hidden_size:,} x {tokens:,} x {batch:,} x {model.layers} x {_width(case)}"
    return [_bytes("activations", size, arithmetic)]


def _overhead(case: TextbookCase) -> Figures:
    weights = weight_bytes(case.model.parameters, case.weight_dtype)
    return [
        _bytes(f"{percent}% of weights", overhead_bytes(weights, percent), f"{percent}% of {_both(weights)}")
        for percent in sorted({*OVERHEAD_PERCENT_RANGE, case.overhead_percent})
    ]


def _inference(case: TextbookCase) -> Figures:
    weights = weight_bytes(case.model.parameters, case.weight_dtype)
    return [_bytes("memory", padded_weights_bytes(weights), f"1.2 x {_both(weights)}")]


def _total(case: TextbookCase) -> Figures:
    memory = case.memory(case.batch)
    return [
        _bytes("weights", memory.weights_bytes, f"all parameters in {case.weight_dtype}"),
        _bytes("overhead", memory.overhead_bytes, f"{case.overhead_percent}% of weights"),
        _bytes("KV cache", memory.kv_cache_bytes, "with attention heads"),
        _bytes("activations", memory.activation_bytes, "of every layer"),
        _bytes("total", memory.total_bytes, "the sum of the four"),
    ]


def _growth(case: TextbookCase) -> Figures:
    one = case.memory(1)
    return [
        _bytes("does not grow", one.fixed_bytes, "weights + overhead"),
        _bytes("grows, each request", one.growing_bytes, "KV cache + activations"),
        *(
            _bytes(f"total, {n} at once", case.memory(n).total_bytes, f"does not grow + {n} x grows")
            for n in AT_ONCE
        ),
    ]


def _requests(case: TextbookCase) -> Figures:
    count = _requests_at_once(case)
    if case.gpu_memory_bytes is None:
        free_gib, each_mib = EXAMPLE_REQUESTS
        arithmetic = f"floor({free_gib} GiB x 1024 / {each_mib} MiB); with a GPU, this model's own"
        return [_in("requests", "the textbook's example", count, arithmetic)]
    one = case.memory(1)
    free = case.gpu_memory_bytes - one.fixed_bytes
    if free <= 0:
        reason = f"what does not grow, {_both(one.fixed_bytes)}, fills {_both(case.gpu_memory_bytes)}"
        return [_in("requests", "requests", count, reason)]
    arithmetic = f"floor({free / GIB:,.2f} GiB x 1024 / {one.growing_bytes / MIB:,.2f} MiB)"
    return [
        _bytes("free VRAM", free, f"{_both(case.gpu_memory_bytes)} less weights, overhead"),
        _in("requests", "requests", count, arithmetic),
    ]


def _reserve(case: TextbookCase) -> Figures:
    count = _requests_at_once(case)
    return [_in("requests", "promise", safe_limit(count), f"floor({1 - BUFFER_RATIO:g} x {count:,})")]


def _training(case: TextbookCase) -> Figures:
    figures = []
    for dtype in TRAINING_DTYPES:
        for optimiser, states in OPTIMISER_STATES.items():
            memory = training_memory(case.model.parameters, dtype=dtype, optimiser=optimiser)
            weights = f"{memory.weights_bytes / 10**9:,.2f}"
            arithmetic = f"{weights} + {weights} + {states} x {weights} + 1.3 GB"
            figures.append(_bytes(f"{dtype}, {optimiser}", memory.total_bytes, arithmetic))
    return figures


def _mixed_training(case: TextbookCase) -> Figures:
    count = case.model.parameters
    return [
        _bytes("bf16 over fp32, adamw", mixed_training_bytes(count), f"{count:,} x (2 + 2 + 4 + 4 + 4) B")
    ]


def _gpu_flops(case: TextbookCase) -> Figures:
    cores, clock_mhz, operations = EXAMPLE_GPU
    arithmetic = f"{cores} cores x {clock_mhz} MHz x {operations}"
    return [_in("FLOPS", "the textbook's example", gpu_flops_per_s(*EXAMPLE_GPU), arithmetic)]


def _prefill(case: TextbookCase) -> Figures:
    flops = case.gpu_flops_per_s or gpu_flops_per_s(*EXAMPLE_GPU)
    active = case.model.parameters_of_a_token
    name = "prefill" if case.gpu_flops_per_s else "on that example GPU"
    arithmetic = f"{flops / 1e12:,.4g} TFLOPS / (2 x {active:,})"
    return [_in("tokens/s", name, prefill_tokens_per_s(flops, active), arithmetic)]


def _moe(case: TextbookCase) -> Figures:
    count, active, dtype = case.model.parameters, case.model.parameters_of_a_token, case.weight_dtype
    share = f"{active / count:.0%} of all"
    return [
        _bytes("weights held", weight_bytes(count, dtype), f"{count:,} in {dtype}"),
        _bytes("weights of one token", weight_bytes(active, dtype), f"{active:,} in {dtype}, {share}"),
        _in("FLOP", "work of one token", 2 * active, f"2 x {active:,}"),
    ]


def _line(case: TextbookCase) -> Figures:
    one = case.memory(1)
    cache = gqa_kv_cache_bytes(case.model, tokens=case.tokens, dtype=case.cache_dtype)
    slope, cache_slope = (size / MIB / case.tokens for size in (one.growing_bytes, cache))
    return [
        _bytes("base", one.fixed_bytes, "weights + overhead"),
        _in("MiB/token", "slope of these formulas", slope, "KV cache with attention heads + activations"),
        _in("MiB/token", "slope of the cache alone", cache_slope, "KV cache with KV heads"),
    ]


def _threads(case: TextbookCase) -> Figures:
    one = case.memory(1)
    above = one.total_bytes - one.fixed_bytes
    return [
        _bytes(
            f"{threads} thread{'s' if threads > 1 else ''}",
            threads_bytes(one.fixed_bytes, one.total_bytes, threads),
            f"resident {one.fixed_bytes / GIB:,.2f} GiB + {above / GIB:,.2f} GiB x {threads}",
        )
        for threads in AT_ONCE
    ]


SHEET: Final[Mapping[str, Callable[[TextbookCase], Figures]]] = {
    "weights": _weights,
    "quantisation": _quantisation,
    "kv_cache": _kv_cache,
    "activation": _activation,
    "overhead": _overhead,
    "inference": _inference,
    "total": _total,
    "growth": _growth,
    "requests": _requests,
    "reserve": _reserve,
    "training": _training,
    "mixed_training": _mixed_training,
    "gpu_flops": _gpu_flops,
    "prefill": _prefill,
    "moe": _moe,
    "line": _line,
    "threads": _threads,
}
"""The figures of each rule of RULES, in its order."""


def _requests_at_once(case: TextbookCase) -> int:
    """X / Y in whole bytes, so exact; the textbook's example without a GPU."""
    if case.gpu_memory_bytes is None:
        return textbook_requests(*EXAMPLE_REQUESTS)
    one = case.memory(1)
    return max(0, case.gpu_memory_bytes - one.fixed_bytes) // one.growing_bytes


def _bytes(name: str, size_bytes: int, arithmetic: str) -> Figure:
    return _in("bytes", name, size_bytes, arithmetic)


def _in(unit: Unit, name: str, value: float, arithmetic: str) -> Figure:
    return Figure(name=name, value=value, unit=unit, arithmetic=arithmetic)


def _both(size_bytes: int) -> str:
    decimal, binary = two_units(size_bytes)
    return f"{decimal} ({binary})"


def _width(case: TextbookCase) -> str:
    return f"{ELEMENT_BITS[case.cache_dtype] / 8:g} B"
