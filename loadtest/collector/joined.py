"""The pages of several replicas -> what the whole server shows; pure.

Where one page is missing there is no whole: a sum without one of its parts would be a wrong number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from loadtest.collector.engine_metrics import EngineReading, agreed
from loadtest.records import Sample

LATEST_OR_FULLEST: Final = frozenset({"kv_usage_ratio", "process_start_time_seconds"})
"""Not added up: the fullest engine, and the process that began last, so that every restart shows."""
MEAN: Final = "kv_usage_mean_ratio"


def joined_signals(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    """Signals that every part shows, added up, of the fullest, or the mean over engines."""
    shared = set(parts[0]).intersection(*parts[1:])
    whole: dict[str, float] = {}
    for name in (name for name in parts[0] if name in shared):
        values = [part[name] for part in parts]
        if name == MEAN:
            engines = [part.get("engines", 1.0) for part in parts]
            whole[name] = sum(v * n for v, n in zip(values, engines, strict=True)) / sum(engines)
        else:
            whole[name] = max(values) if name in LATEST_OR_FULLEST else sum(values)
    return whole


def joined_readings(readings: Sequence[EngineReading]) -> EngineReading:
    """One server of several pages. Cache settings are those on which all of them agree."""
    if len(readings) == 1:
        return readings[0]
    kinds = {reading.engine for reading in readings}
    names = dict.fromkeys(name for reading in readings for name in reading.model_names)
    return EngineReading(
        engine=readings[0].engine if len(kinds) == 1 else None,
        signals=joined_signals([dict(reading.signals) for reading in readings]),
        model_names=tuple(names),
        cache_config=agreed([reading.cache_config for reading in readings]),
        engine_blocks=_blocks_of_all(readings),
        skipped_lines=sum(reading.skipped_lines for reading in readings),
    )


def _blocks_of_all(readings: Sequence[EngineReading]) -> tuple[int, ...]:
    if not all(reading.engine_blocks for reading in readings):
        return ()
    return tuple(blocks for reading in readings for blocks in reading.engine_blocks)


def joined_looks(looks: Sequence[Sample]) -> list[Sample]:
    """The row of the whole server; of several pages, the row of each one too."""
    if len(looks) == 1:
        return list(looks)
    gaps = [f"{look.target}: {look.gap}" for look in looks if look.gap is not None]
    skipped = sum(int(look.labels.get("skipped_lines", 0)) for look in looks)
    labels = {name: text for name, text in looks[0].labels.items() if name != "skipped_lines"}
    whole = Sample(
        at_ns=max(look.at_ns for look in looks),
        source="engine",
        target=f"{looks[0].target} and {len(looks) - 1} more",
        gap=f"{len(gaps)} of {len(looks)} pages: {gaps[0]}" if gaps else None,
        signals={} if gaps else joined_signals([dict(look.signals) for look in looks]),
        labels={**labels, "skipped_lines": str(skipped)} if skipped else labels,
    )
    return [whole, *(_replica(look) for look in looks)]


def _replica(look: Sample) -> Sample:
    return Sample(
        at_ns=look.at_ns,
        source="replica",
        target=look.target,
        gap=look.gap,
        signals=look.signals,
        labels=look.labels,
    )
