"""What a soak says of itself while it runs: a line a minute, from the rows as they are written. No clock."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from estimator.units import MIB
from loadtest.records import Sample
from loadtest.row_tail import RowTail
from loadtest.run_folder import PlannedStage, RunFolder

EVERY_S: Final = 60.0
WORDS: Final[tuple[tuple[str, Callable[[float], str]], ...]] = (
    ("client_in_flight", lambda value: f"{value:,.0f} in flight"),
    ("running", lambda value: f"{value:,.0f} running"),
    ("waiting", lambda value: f"{value:,.0f} waiting"),
    ("kv_usage_ratio", lambda value: f"KV {value:.1%}"),
    ("preemptions_total", lambda value: f"{value:,.0f} preempted"),
    ("process_resident_memory_bytes", lambda value: f"server {value / MIB:,.0f} MiB"),
    ("gpu_memory_used_bytes", lambda value: f"GPU {value / MIB:,.0f} MiB"),
    ("client_rss_bytes", lambda value: f"we {value / MIB:,.0f} MiB"),
)
"""In this order; a signal that nobody shows is left out. Of several processes or devices the sum."""


class SoakNews:
    """Reads what was added to the samples since the last line, and keeps the last look at each target."""

    def __init__(self, folder: RunFolder, stages: tuple[PlannedStage, ...]) -> None:
        self._folder = folder
        self._total_s = sum(stage.hold_s for stage in stages)
        self._tails: dict[Path, RowTail] = {}
        self._last: dict[tuple[str, ...], Sample] = {}
        self._said_s = 0.0

    def line(self, elapsed_s: float) -> str | None:
        """None until EVERY_S have passed since the last one."""
        if elapsed_s - self._said_s < EVERY_S:
            return None
        self._said_s = elapsed_s
        for path in self._folder.sample_files():
            for row in self._tails.setdefault(path, RowTail(path)).new_rows():
                if isinstance(row, Sample) and row.gap is None:
                    self._last[row.source, row.target, *row.labels.values()] = row
        return f"{_clock(elapsed_s)} of {_clock(self._total_s)}: {', '.join(self._words()) or 'nothing seen'}"

    def _words(self) -> list[str]:
        words = []
        for signal, said in WORDS:
            seen = [sample.signals[signal] for sample in self._last.values() if signal in sample.signals]
            words += [said(sum(seen))] if seen else []
        return words


def _clock(duration_s: float) -> str:
    """Hours and minutes."""
    minutes = round(duration_s / 60)
    return f"{minutes // 60}:{minutes % 60:02d} h"
