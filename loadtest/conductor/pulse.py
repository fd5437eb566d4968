"""A load process watches itself: CPU, memory, users, requests in flight and how late its own loop runs."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from loadtest.records import Sample

PROBE_S: Final = 0.05
_NONE: Final[Mapping[str, float]] = MappingProxyType({})


class Pulse:
    """Turns looks at this process into Samples, a second apart or whenever `sample` is called."""

    def __init__(self, worker: int, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        self._target = f"w{worker:02d}"
        self._clock = clock
        self._lag_max_ns = 0
        self._last_ns = clock()
        self._last_cpu_s = _cpu_s()

    def probed(self, due_ns: int) -> None:
        """A timer of the event loop was due at `due_ns` and ran now: the difference is the loop's lag."""
        self._lag_max_ns = max(self._lag_max_ns, self._clock() - due_ns)

    def sample(self, *, users: int, in_flight: int, arrivals: Mapping[str, float] = _NONE) -> Sample:
        now_ns, cpu_s = self._clock(), _cpu_s()
        passed_s = max((now_ns - self._last_ns) / 1e9, 1e-9)
        sample = Sample(
            at_ns=now_ns,
            source="client",
            target=self._target,
            signals={
                "client_users": float(users),
                "client_in_flight": float(in_flight),
                "client_cpu_ratio": (cpu_s - self._last_cpu_s) / passed_s,
                "client_loop_lag_max_s": self._lag_max_ns / 1e9,
                "client_rss_bytes": float(rss_bytes()),
                **arrivals,
            },
        )
        self._last_ns, self._last_cpu_s, self._lag_max_ns = now_ns, cpu_s, 0
        return sample


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def rss_bytes() -> int:
    """Resident memory of this process."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):  # not Linux: the peak is the best there is
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return pages * os.sysconf("SC_PAGE_SIZE")
