"""Looks at the machine the load comes from: limits, clocks, processors, memory. The parsers are pure.

Everything is read from /proc and /sys below folders that are arguments; what is not there is None.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

from loadtest.conductor.audit.descriptors import descriptor_limits

PROBES: Final = 40
PROBE_S: Final = 0.005
PROC: Final = Path("/proc")
SYS: Final = Path("/sys")
CLOCKSOURCE: Final = "devices/system/clocksource/clocksource0/current_clocksource"


@dataclass(frozen=True, slots=True, kw_only=True)
class TimerLook:
    """What timers of PROBE_S showed: how late they ran, and how far the wall clock went astray meanwhile."""

    lag_median_s: float
    lag_max_s: float
    wall_step_s: float
    """Seconds by the wall clock less seconds by the monotonic one."""
    went_back: bool
    """The monotonic clock gave a smaller number than before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """One machine as one process sees it. None: not shown here, or no limit."""

    fd_soft: int | None
    fd_hard: int | None
    ports: tuple[int, int] | None
    """First and last port the kernel takes for outgoing connections."""
    time_wait: int | None
    tick_s: float
    """The step of the monotonic clock."""
    clocksource: str | None
    timer: TimerLook
    cpus: int
    """Processors this process may run on."""
    cpu_quota: float | None
    """Processors' worth of time the cgroup may use."""
    load_1m: float | None
    memory_free_bytes: int | None
    steal_ratio: float | None = None
    """Share of processor time that the hypervisor gave to others, during the whole audit."""


def read_host(proc: Path = PROC, sys: Path = SYS) -> HostFacts:
    """Takes PROBES x PROBE_S seconds, 0.2 s."""
    fd_soft, fd_hard = descriptor_limits()
    timer = look_at_timer(time.perf_counter_ns, time.time_ns, time.sleep)
    groups = cgroup_folders(_text(proc / "self/cgroup"), sys / "fs/cgroup")
    return HostFacts(
        fd_soft=fd_soft,
        fd_hard=fd_hard,
        ports=port_range(_text(proc / "sys/net/ipv4/ip_local_port_range")),
        time_wait=time_wait_sockets(_text(proc / "net/sockstat")),
        tick_s=time.get_clock_info("perf_counter").resolution,
        clocksource=_text(sys / CLOCKSOURCE).strip() or None,
        timer=timer,
        cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        cpu_quota=min((q for group in groups if (q := cpu_quota(_text(group / "cpu.max")))), default=None),
        load_1m=load_1m(_text(proc / "loadavg")),
        memory_free_bytes=_memory_free(_text(proc / "meminfo"), groups),
    )


def look_at_timer(
    mono: Callable[[], int], wall: Callable[[], int], sleep: Callable[[float], None]
) -> TimerLook:
    """Sleeps PROBES times; both clocks count nanoseconds."""
    start_ns, wall_start_ns = mono(), wall()
    last_ns, went_back = start_ns, False
    lags_s = []
    for _ in range(PROBES):
        due_ns = last_ns + int(PROBE_S * 1e9)
        sleep(PROBE_S)
        now_ns = mono()
        lags_s.append(max(0.0, (now_ns - due_ns) / 1e9))
        went_back, last_ns = went_back or now_ns < last_ns, now_ns
    return TimerLook(
        lag_median_s=median(lags_s),
        lag_max_s=max(lags_s),
        wall_step_s=((wall() - wall_start_ns) - (last_ns - start_ns)) / 1e9,
        went_back=went_back,
    )


def port_range(text: str) -> tuple[int, int] | None:
    """/proc/sys/net/ipv4/ip_local_port_range: two numbers."""
    words = text.split()
    return (int(words[0]), int(words[1])) if len(words) == 2 and all(map(str.isdigit, words)) else None


def time_wait_sockets(sockstat: str) -> int | None:
    """/proc/net/sockstat: "TCP: inuse 5 orphan 0 tw 3 alloc 9 mem 2"."""
    for line in sockstat.splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if name == "TCP" and "tw" in words[:-1]:
            return int(words[words.index("tw") + 1])
    return None


def load_1m(text: str) -> float | None:
    """/proc/loadavg: runnable tasks, averaged over the last minute."""
    try:
        return float(text.split()[0])
    except (IndexError, ValueError):
        return None


def cgroup_folders(text: str, root: Path) -> list[Path]:
    """/proc/self/cgroup of version 2, "0::/a/b": the folder of the process and those above it."""
    for line in text.splitlines():
        if line.startswith("0::/"):
            own = root / line.removeprefix("0::/")
            return [own, *(folder for folder in own.parents if folder.is_relative_to(root))]
    return [root]


def cpu_quota(text: str) -> float | None:
    """cpu.max, "200000 100000" or "max 100000": processors' worth of time; None without a limit."""
    words = text.split()
    if len(words) != 2 or not all(map(str.isdigit, words)) or int(words[1]) == 0:
        return None
    return int(words[0]) / int(words[1])


def available_bytes(meminfo: str) -> int | None:
    """/proc/meminfo: what a new process can have without swapping."""
    for line in meminfo.splitlines():
        words = line.split()
        if words[:1] == ["MemAvailable:"] and len(words) == 3:
            return int(words[1]) * 1024
    return None


def _memory_free(meminfo: str, groups: list[Path]) -> int | None:
    left = [available_bytes(meminfo)]
    for group in groups:
        limit, used = _text(group / "memory.max").strip(), _text(group / "memory.current").strip()
        left.append(int(limit) - int(used) if limit.isdigit() and used.isdigit() else None)
    return min((one for one in left if one is not None), default=None)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
