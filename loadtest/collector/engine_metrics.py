"""A /metrics page -> the signals of records.SIGNALS, for every era of vLLM and LMDeploy; pure, never raises.

What is not on the page, not a number, or missing for one of several engines is absent, never zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from estimator.spec import EngineName
from loadtest.collector.series import UNREADABLE, Labels, Page, Series, parse_series


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineReading:
    """What one page shows. `engine` is None when no line of it is vLLM's or LMDeploy's.

    `signals` has names and units of records.SIGNALS. `cache_config` holds the labels of vLLM's
    cache_config_info (LMDeploy: backend_config_info) on which all engines agree, as text; num_gpu_blocks is
    that of one engine. `engine_blocks`: of each engine, empty where one does not show its own.
    `skipped_lines` counts lines of known names that held no readable number.
    """

    engine: EngineName | None = None
    signals: Mapping[str, float] = field(default_factory=dict)
    model_names: tuple[str, ...] = ()
    cache_config: Mapping[str, str] = field(default_factory=dict)
    engine_blocks: tuple[int, ...] = ()
    skipped_lines: int = 0


Fold = Callable[[Sequence[float]], float]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a signal stands on a page: the first of `names` found there is read, newest era first.

    Families in `plus` are added when the page has them. Series whose `finished_reason` is not in `reasons`
    do not count. `fold` joins the series of all engines.
    """

    names: tuple[str, ...]
    plus: tuple[str, ...] = ()
    reasons: frozenset[str] | None = None
    fold: Fold = sum


# Newer versions say kv_cache_*, older ones gpu_cache_*; the engine before V1 swapped out what it preempted.
# The gpu_prefix_cache_* counters counted blocks at first and tokens later: only their ratio is safe there.
_KV_USAGE: Final = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
VLLM: Final[Mapping[str, Source]] = {
    "running": Source(names=("vllm:num_requests_running",)),
    "waiting": Source(names=("vllm:num_requests_waiting",), plus=("vllm:num_requests_swapped",)),
    "kv_usage_ratio": Source(names=_KV_USAGE, fold=max),
    "kv_usage_mean_ratio": Source(names=_KV_USAGE, fold=_mean),
    "preemptions_total": Source(names=("vllm:num_preemptions_total", "vllm:num_preemptions")),
    "prompt_tokens_total": Source(names=("vllm:prompt_tokens_total", "vllm:prompt_tokens")),
    "generation_tokens_total": Source(names=("vllm:generation_tokens_total", "vllm:generation_tokens")),
    "requests_finished_total": Source(
        names=("vllm:request_success_total", "vllm:request_success"),
        # the family counts aborts and errors too, whatever its name says
        reasons=frozenset({"stop", "length", "repetition"}),
    ),
    "prefix_cache_queries_total": Source(
        names=(
            "vllm:prefix_cache_queries_total",
            "vllm:prefix_cache_queries",
            "vllm:gpu_prefix_cache_queries_total",
            "vllm:gpu_prefix_cache_queries",
        )
    ),
    "prefix_cache_hits_total": Source(
        names=(
            "vllm:prefix_cache_hits_total",
            "vllm:prefix_cache_hits",
            "vllm:gpu_prefix_cache_hits_total",
            "vllm:gpu_prefix_cache_hits",
        )
    ),
    "ttft_seconds_sum": Source(names=("vllm:time_to_first_token_seconds_sum",)),
    "ttft_seconds_count": Source(names=("vllm:time_to_first_token_seconds_count",)),
}

# LMDeploy 0.18 refreshes its gauges every 10 s only; its counters and histograms move with every step.
# A request waits either in the engine or, when all its slots are taken, in front of it (num_api_*).
# It has no preemption counter, and no counter of prefix cache queries.
_LMDEPLOY_KV_USAGE: Final = ("lmdeploy:gpu_cache_usage_perc",)
LMDEPLOY: Final[Mapping[str, Source]] = {
    "running": Source(names=("lmdeploy:num_requests_running",)),
    "waiting": Source(
        names=("lmdeploy:num_requests_waiting",),
        plus=("lmdeploy:num_api_requests_waiting",),
    ),
    "kv_usage_ratio": Source(names=_LMDEPLOY_KV_USAGE, fold=max),
    "kv_usage_mean_ratio": Source(names=_LMDEPLOY_KV_USAGE, fold=_mean),
    "prompt_tokens_total": Source(names=("lmdeploy:prompt_tokens_total",)),
    "generation_tokens_total": Source(names=("lmdeploy:generation_tokens_total",)),
    "requests_finished_total": Source(
        names=("lmdeploy:request_success_total", "lmdeploy:num_requests_succeeded"),
        reasons=frozenset({"ResponseType.FINISH"}),
    ),
    "prefix_cache_hits_total": Source(names=("lmdeploy:cached_tokens_total",)),
    "ttft_seconds_sum": Source(names=("lmdeploy:time_to_first_token_seconds_sum",)),
    "ttft_seconds_count": Source(names=("lmdeploy:time_to_first_token_seconds_count",)),
}

PROCESS: Final[Mapping[str, Source]] = {
    "process_start_time_seconds": Source(names=("process_start_time_seconds",)),
    "process_resident_memory_bytes": Source(names=("process_resident_memory_bytes",)),
    "process_open_fds": Source(names=("process_open_fds",)),
}
BLOCKS: Final = "num_gpu_blocks"
CONFIG_INFOS: Final = {"vllm": "vllm:cache_config_info", "lmdeploy": "lmdeploy:backend_config_info"}
"""LMDeploy 0.18 declares its family and leaves it empty."""

_ENGINES: Final[Mapping[EngineName, Mapping[str, Source]]] = {"vllm": VLLM, "lmdeploy": LMDEPLOY}
_PREFIXES: Final[Mapping[str, EngineName]] = {f"{engine}:": engine for engine in _ENGINES}
_FIRST_LETTERS: Final = (*_PREFIXES, "process_")


def names_of(engine: EngineName) -> frozenset[str]:
    """Every name whose series are read of a server of this kind."""
    sources = (*_ENGINES[engine].values(), *PROCESS.values())
    names = frozenset(name for source in sources for name in source.names + source.plus)
    return names | {CONFIG_INFOS[engine]}


_WANTED: Final = names_of("vllm") | names_of("lmdeploy")


def read_engine_page(text: str) -> EngineReading:
    """The signals of one page in Prometheus' text format 0.0.4; an empty reading for anything else.

    A page that does not end in a line feed was cut off, and its last line may hold half a number: that line
    counts as broken.
    """
    *lines, cut_line = text.split("\n")  # not splitlines(): a label may hold other kinds of line ends
    kept = [line for line in (*lines, cut_line + UNREADABLE) if line.startswith(_FIRST_LETTERS)]
    page, skipped_lines = parse_series(kept, _WANTED)
    engine = _engine_of(kept)
    if engine is None:
        return EngineReading(skipped_lines=skipped_lines)
    return reading_of(page, engine, skipped_lines)


def reading_of(page: Page, engine: EngineName, skipped_lines: int = 0) -> EngineReading:
    """The signals of one server's series, wherever they were read."""
    table = _ENGINES[engine]
    own = [series for source in table.values() for name in source.names for series in page.get(name) or ()]
    ranks = frozenset(series.labels["engine"] for series in own if "engine" in series.labels)
    signals: dict[str, float] = {"engines": float(len(ranks) or 1)} if own else {}
    for signal, source in (*table.items(), *PROCESS.items()):
        value = _fold(source, page, ranks)
        if value is not None:
            signals[signal] = value
    configs = _of_one_engine([series.labels for series in page.get(CONFIG_INFOS[engine]) or ()])
    return EngineReading(
        engine=engine,
        signals=signals,
        model_names=tuple(dict.fromkeys(s.labels["model_name"] for s in own if s.labels.get("model_name"))),
        cache_config=agreed(configs),
        engine_blocks=_blocks(configs, engines=len(ranks) or 1),
        skipped_lines=skipped_lines,
    )


def _engine_of(lines: Iterable[str]) -> EngineName | None:
    """By any name of theirs, known or not: a server whose names have changed is still recognised."""
    for line in lines:
        for prefix, engine in _PREFIXES.items():
            if line.startswith(prefix):
                return engine
    return None


def _fold(source: Source, page: Page, ranks: frozenset[str]) -> float | None:
    name = next((name for name in source.names if name in page), None)
    if name is None:
        return None
    values: list[float] = []
    for more in (name, *(plus for plus in source.plus if plus in page)):
        family = page[more]
        if family is None or not _covers(family, ranks):
            return None  # a sum without one of its parts would be a wrong number
        values += [series.value for series in family if _counts(series, source)]
    folded = source.fold(values) if values else math.inf
    return folded if math.isfinite(folded) else None


def _covers(family: Sequence[Series], ranks: frozenset[str]) -> bool:
    shown = {series.labels.get("engine") for series in family}
    return shown == {None} or shown >= ranks


def _counts(series: Series, source: Source) -> bool:
    reason = series.labels.get("finished_reason")
    return source.reasons is None or reason is None or reason in source.reasons


def _of_one_engine(configs: Sequence[Labels]) -> Sequence[Labels]:
    """The configuration of each engine, with the blocks that it has itself.

    vLLM adds up the blocks of its data-parallel engines and shows the sum beside each (0.32, core_client.py
    _apply_ready_response). Lines of one page that differ are not of one vLLM, and stand as they are.
    """
    shown = {config.get(BLOCKS) for config in configs}
    total = count_of(configs[0], BLOCKS) if len(shown) == 1 else None
    if total is None:
        return configs
    return [{**config, BLOCKS: str(total // len(configs))} for config in configs]


def _blocks(configs: Sequence[Labels], engines: int) -> tuple[int, ...]:
    known = [blocks for config in configs if (blocks := count_of(config, BLOCKS)) is not None]
    return tuple(known) if len(known) == len(configs) == engines else ()


def count_of(labels: Labels, name: str) -> int | None:
    """None where the label is missing, or is no count ("None")."""
    text = labels.get(name, "")
    return int(text) if text.isascii() and text.isdigit() else None


def agreed(configs: Sequence[Labels]) -> Labels:
    """The labels that say the same for every engine: what differs belongs to none of them alone."""
    if not configs:
        return {}
    first, *others = configs
    return {name: value for name, value in first.items() if all(o.get(name) == value for o in others)}
