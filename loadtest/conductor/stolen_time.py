"""What the hypervisor took of this machine's processors, where Linux counts it (/proc/stat)."""

from __future__ import annotations

from pathlib import Path
from typing import Final

STAT: Final = Path("/proc/stat")


class StolenTime:
    """From look to look; the first counts from when this was made."""

    def __init__(self, stat: Path = STAT) -> None:
        self._stat = stat
        self._before = self._text()

    def ratio(self) -> float | None:
        """Share of all processors' time since the last look that others were given. None: not shown."""
        before, self._before = self._before, self._text()
        return steal_ratio(before, self._before)

    def _text(self) -> str:
        try:
            return self._stat.read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError):
            return ""


def steal_ratio(before: str, after: str) -> float | None:
    """Two reads of /proc/stat: the first line's first eight numbers are all time, the eighth is stolen."""
    first, last = _ticks(before), _ticks(after)
    if first is None or last is None:
        return None
    passed = sum(last) - sum(first)
    return (last[7] - first[7]) / passed if passed > 0 else None


def _ticks(stat: str) -> list[int] | None:
    words = stat.partition("\n")[0].split()
    return [int(word) for word in words[1:9]] if words[:1] == ["cpu"] and len(words) > 8 else None
