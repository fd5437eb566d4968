"""A load process watches itself: CPU, memory, users, requests, how late its loop runs and what made it so."""

from __future__ import annotations

import gc
import os
import resource
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from loadtest.conductor.cpu_wait import CpuWait
from loadtest.conductor.stolen_time import StolenTime
from loadtest.records import Sample

PROBE_S: Final = 0.05
STOLEN_S_MIN: Final = 0.5
"""Linux counts stolen time in hundredths of a second: a share of fewer than these says nothing."""
_NONE: Final[Mapping[str, float]] = MappingProxyType({})


class Collections:
    """What the garbage collector took of this process, until closed: `total_ns` in all, `longest_ns` at once.

    In processor time of the thread that collects: a core taken away meanwhile is no garbage, and the loop's
    lag tells of it.
    """

    def __init__(self, clock: Callable[[], int] = time.thread_time_ns) -> None:
        self._clock = clock
        self._begun_ns: int | None = None
        self.total_ns = self.longest_ns = 0
        gc.callbacks.append(self._look)

    def close(self) -> None:
        gc.callbacks.remove(self._look)

    def _look(self, phase: str, _: object) -> None:
        if phase == "start":
            self._begun_ns = self._clock()
        elif self._begun_ns is not None:  # else it began before we looked
            pause_ns = self._clock() - self._begun_ns
            self.total_ns += pause_ns
            self.longest_ns = max(self.longest_ns, pause_ns)


class Pulse:
    """Turns looks at this process into Samples, a second apart or whenever `sample` is called."""

    def __init__(
        self,
        worker: int,
        clock: Callable[[], int] = time.perf_counter_ns,
        stolen_ratio: Callable[[], float | None] | None = None,
        waited_s: Callable[[], float | None] | None = None,
    ) -> None:
        self._target = f"w{worker:02d}"
        self._clock = clock
        self._lag_max_ns = 0
        self._last_ns = clock()
        self._last_cpu_s = _cpu_s()
        self._garbage = Collections()
        self._stolen_ratio = stolen_ratio or StolenTime().ratio
        self._waited_s = waited_s or CpuWait().seconds

    def close(self) -> None:
        self._garbage.close()

    def probed(self, due_ns: int) -> None:
        """A timer of the event loop was due at `due_ns` and ran now: the difference is the loop's lag."""
        self._lag_max_ns = max(self._lag_max_ns, self._clock() - due_ns)

    def sample(self, *, users: int, in_flight: int, arrivals: Mapping[str, float] = _NONE) -> Sample:
        now_ns, cpu_s = self._clock(), _cpu_s()
        passed_s = max((now_ns - self._last_ns) / 1e9, 1e-9)
        stolen = self._stolen_ratio() if passed_s >= STOLEN_S_MIN else None
        waited_s = self._waited_s()
        sample = Sample(
            at_ns=now_ns,
            source="client",
            target=self._target,
            signals={
                "client_users": float(users),
                "client_in_flight": float(in_flight),
                "client_cpu_ratio": (cpu_s - self._last_cpu_s) / passed_s,
                "client_loop_lag_max_s": self._lag_max_ns / 1e9,
                "client_gc_pause_max_s": self._garbage.longest_ns / 1e9,
                "client_gc_total_s": self._garbage.total_ns / 1e9,
                "client_rss_bytes": float(rss_bytes()),
                **({} if stolen is None else {"client_steal_ratio": stolen}),
                **({} if waited_s is None else {"client_cpu_wait_ratio": min(1.0, waited_s / passed_s)}),
                **arrivals,
            },
        )
        self._last_ns, self._last_cpu_s, self._lag_max_ns = now_ns, cpu_s, 0
        self._garbage.longest_ns = 0
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
