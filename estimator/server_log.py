"""A server's start-up log -> what it says of its memory: bytes, each a range as wide as its rounding.

Source of the lines: vLLM 0.32 v1/worker/gpu_worker.py, v1/worker/gpu_model_runner.py,
v1/core/kv_cache_utils.py and v1/engine/core.py; LMDeploy 0.16-0.18 turbomind (object cache) and
pytorch/engine (CacheConfig).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

from estimator.spec import Interval, SpecError
from estimator.units import GIB, MIB

LINE_CHARS_MAX: Final = 100_000
"""Longer lines are cut: the ones we read are short, and the engine's config line fits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLog:
    """What a start-up log says; None where it says nothing."""

    engine: str | None = None
    version: str | None = None
    model: str | None = None
    tensor_parallel_size: int | None = None
    pipeline_parallel_size: int | None = None
    enforce_eager: bool | None = None
    total_bytes: Interval | None = None
    free_bytes: Interval | None = None
    requested_bytes: Interval | None = None
    gpu_memory_utilization: float | None = None
    weights_bytes: Interval | None = None
    """Model loading: parameters and buffers."""
    consumed_bytes: Interval | None = None
    """Weights and what grew outside PyTorch until the end of profiling."""
    activation_bytes: Interval | None = None
    cuda_graph_bytes: Interval | None = None
    """The estimate that was subtracted from the KV cache."""
    cuda_graph_actual_bytes: Interval | None = None
    kv_cache_bytes: Interval | None = None
    kv_cache_size_tokens: int | None = None
    max_concurrency: float | None = None
    max_model_len: int | None = None
    num_gpu_blocks: int | None = None
    block_size: int | None = None
    free_ratio: float | None = None
    """LMDeploy's cache_max_entry_count."""

    @property
    def non_torch_bytes(self) -> Interval | None:
        """Growth outside PyTorch while the model was loaded and profiled."""
        if self.consumed_bytes is None or self.weights_bytes is None:
            return None
        consumed, weights = self.consumed_bytes, self.weights_bytes
        return Interval(
            low=max(0, consumed.low - weights.high),
            likely=max(0, consumed.likely - weights.likely),
            high=max(0, consumed.high - weights.low),
        )


Reader = Callable[[ServerLog, re.Match[str]], ServerLog]


def parse_server_log(lines: Iterable[str]) -> ServerLog:
    """Reads each line it knows; a later start replaces an earlier one. Raises SpecError if it knows none."""
    log = ServerLog()
    for line in lines:
        text = line[:LINE_CHARS_MAX]
        for mark, pattern, read in LINES:
            if mark in text and (match := re.search(pattern, text)):
                log = read(log, match)
    if log == ServerLog():
        raise SpecError(
            "the log holds none of vLLM's or LMDeploy's start-up lines; "
            "give the server's output from its start"
        )
    return log


def _rounded(text: str, unit_bytes: int) -> Interval:
    """A printed figure and the range it was rounded from."""
    value = float(text.replace(",", ""))
    digits = len(text.partition(".")[2])
    half = 0.5 * 10.0**-digits
    return Interval(
        low=max(0, round((value - half) * unit_bytes)),
        likely=round(value * unit_bytes),
        high=round((value + half) * unit_bytes),
    )


def _gib(**groups: str) -> Reader:
    """A reader that puts figures printed in GiB into the fields named."""

    def read(log: ServerLog, match: re.Match[str]) -> ServerLog:
        found: dict[str, Any] = {field: _rounded(match[group], GIB) for field, group in groups.items()}
        return replace(log, engine="vllm", **found)

    return read


def _usage(log: ServerLog, match: re.Match[str]) -> ServerLog:
    fields = (
        *("free_bytes", "total_bytes", "requested_bytes", "consumed_bytes", "activation_bytes"),
        *("cuda_graph_bytes", "kv_cache_bytes"),
    )
    sizes: dict[str, Any] = {field: _rounded(match[field], GIB) for field in fields}
    return replace(log, engine="vllm", gpu_memory_utilization=float(match["share"]), **sizes)


def _cache_size(log: ServerLog, match: re.Match[str]) -> ServerLog:
    return replace(log, engine="vllm", kv_cache_size_tokens=_count(match["tokens"]))


def _concurrency(log: ServerLog, match: re.Match[str]) -> ServerLog:
    return replace(
        log,
        engine="vllm",
        max_concurrency=float(match["times"]),
        max_model_len=_count(match["length"]),
    )


def _vllm_start(log: ServerLog, match: re.Match[str]) -> ServerLog:
    """The engine's config line opens a start: what an earlier start said is forgotten."""
    text = match["config"]

    def value(key: str) -> str | None:
        found = re.search(rf"(?:^|[ ,(]){key}=('[^']*'|[^,)]*)", text)
        return None if found is None else found[1].strip("'")

    eager = value("enforce_eager")
    return ServerLog(
        engine="vllm",
        version=match["version"],
        model=value("model"),
        tensor_parallel_size=_whole(value("tensor_parallel_size")),
        pipeline_parallel_size=_whole(value("pipeline_parallel_size")),
        enforce_eager=None if eager is None else eager == "True",
        max_model_len=_whole(value("max_seq_len")),
    )


def _blocks(log: ServerLog, match: re.Match[str]) -> ServerLog:
    return replace(log, engine="vllm", num_gpu_blocks=_count(match["blocks"]))


def _turbomind_budget(log: ServerLog, match: re.Match[str]) -> ServerLog:
    return replace(
        log,
        engine="lmdeploy",
        kv_cache_bytes=_rounded(match["budget"], MIB),
        free_bytes=_rounded(match["free"], MIB),
        free_ratio=float(match["ratio"]),
    )


def _turbomind_blocks(log: ServerLog, match: re.Match[str]) -> ServerLog:
    return replace(log, engine="lmdeploy", num_gpu_blocks=int(match["blocks"]))


def _pytorch_cache(log: ServerLog, match: re.Match[str]) -> ServerLog:
    found: dict[str, Any] = {"engine": "lmdeploy"}
    for field, key in (("num_gpu_blocks", "num_gpu_blocks"), ("block_size", "block_size")):
        value = re.search(rf"\b{key}=(\d+)", match["config"])
        if value:
            found[field] = int(value[1])
    return replace(log, **found)


def _count(text: str) -> int:
    return int(text.replace(",", ""))


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() else None


_NUMBER: Final = r"[\d,]+(?:\.\d+)?"


def _gib_of(name: str) -> str:
    return rf"(?P<{name}>{_NUMBER}) ?GiB"


LINES: Final[tuple[tuple[str, str, Reader], ...]] = (
    (
        "Initializing a V1 LLM engine",
        r"Initializing a V1 LLM engine \(v(?P<version>[^)\s]+)\) with config: (?P<config>.*)",
        _vllm_start,
    ),
    ("Model loading took", rf"Model loading took {_gib_of('size')}", _gib(weights_bytes="size")),
    ("Available KV cache memory", rf"memory: {_gib_of('size')}", _gib(kv_cache_bytes="size")),
    ("Estimated CUDA graph memory", rf"memory: {_gib_of('size')}", _gib(cuda_graph_bytes="size")),
    (
        "CUDA graph pool memory",
        rf"memory: {_gib_of('actual')} \(actual\), {_gib_of('estimate')} \(estimated\)",
        _gib(cuda_graph_actual_bytes="actual", cuda_graph_bytes="estimate"),
    ),
    (
        "Graph capturing finished",
        rf"finished in \S+ secs, took {_gib_of('size')}",
        _gib(cuda_graph_actual_bytes="size"),
    ),
    (
        "Free memory on device",
        rf"\((?P<free_bytes>{_NUMBER})/{_gib_of('total_bytes')}\) on startup\. "
        rf"Desired GPU memory utilization is \((?P<share>[\d.]+), {_gib_of('requested_bytes')}\)\. "
        rf"Actual usage is {_gib_of('consumed_bytes')} for consumed memory[^,]*, "
        rf"{_gib_of('activation_bytes')} for peak activation, and "
        rf"{_gib_of('cuda_graph_bytes')} for CUDAGraph memory\..*"
        rf"Current kv cache memory in use is {_gib_of('kv_cache_bytes')}",
        _usage,
    ),
    ("KV cache size", rf"KV cache size: (?P<tokens>{_NUMBER}) tokens", _cache_size),
    (
        "Maximum concurrency for",
        rf"for (?P<length>{_NUMBER}) tokens per request: (?P<times>[\d.]+)x",
        _concurrency,
    ),
    ("GPU blocks", r"# (?:GPU|CUDA) blocks: (?P<blocks>[\d,]+)", _blocks),
    (
        "Object cache budget",
        rf"budget:? (?P<budget>{_NUMBER}) MB from free (?P<free>{_NUMBER}) MB and ratio (?P<ratio>[\d.]+)",
        _turbomind_budget,
    ),
    ("max_block_count", r"\[BlockManager\] max_block_count = (?P<blocks>\d+)", _turbomind_blocks),
    ("CacheConfig(", r"(?P<config>CacheConfig\(.*)", _pytorch_cache),
)
"""(a fixed part of the line, its pattern, what it tells)."""
