"""Was the load generator itself the limit? What it showed of itself in the judged windows. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Final

from loadtest.audit import STEAL_AMBER
from loadtest.columns import Columns
from loadtest.records import Sample
from loadtest.reporter.bursts import burst_ratio
from loadtest.reporter.latency import NEEDED_BY_LATENESS, Latencies, exact_quantiles, send_lateness_s
from loadtest.reporter.looks import looks_in
from loadtest.reporter.observation import ClientHealth, Window
from loadtest.reporter.question import Question, need_of, started, together
from loadtest.reporter.stages import in_flight_at

SEND_LATENESS_S: Final = 0.020
LOOP_LAG_S: Final = 0.050
GC_PAUSE_S: Final = LOOP_LAG_S
"""Of the processor, at once: so long no token is dated, and everyone under way looks slow."""
STANDSTILL_S: Final = 2.0
"""Once is enough: nobody was asked anything meanwhile."""
CPU_RATIO: Final = 0.80
CPU_WAIT_RATIO: Final = 0.05
"""Of the time: a load process was ready and others on its machine had the processors."""
SECOND_RATIO: Final = 0.2
"""So much of one second, stolen or waited, is told however little it is of all of them."""


def client_health(samples: Sequence[Sample], windows: Sequence[Window]) -> Question[ClientHealth]:
    """Over the judged windows only: starting users is work that a steady load does not have."""
    inside = [look for look in looks_in(samples, windows) if look.source == "client"]
    lags = _by_worker(inside, "client_loop_lag_max_s")
    cpus = _by_worker(inside, "client_cpu_ratio")
    steal, wait = _share(inside, "client_steal_ratio"), _share(inside, "client_cpu_wait_ratio")
    gc_pause_s = _worst(inside, "client_gc_pause_max_s")
    # of the worst load process: an idle one beside it excuses nothing
    lag_s = max(map(median, lags), default=None)
    found = yield from together(
        lateness_s=_lateness_p99_s(windows),
        outcomes=_outcomes(windows),
        parked=_parked(samples, windows),
        burst_ratio=burst_ratio(windows, lag_s),
    )
    lateness_s: float | None = found["lateness_s"]
    cpu_ratio = max(map(median, cpus), default=None)
    longest_s = max(map(max, lags), default=0.0)
    halts = []
    own: Counter[str | None] = found["outcomes"]
    if lost := own["client_lost"]:
        halts.append(f"a load process died with {lost} requests in flight")
    if unsent := own["client_fd"] + own["client_ports"]:
        halts.append(f"{unsent} requests found no file descriptor or port on this machine")
    taken = _taken(steal, wait)
    if longest_s > STANDSTILL_S:
        halts += [f"it stood still for {longest_s:.1f} s", *taken]
    faults = [*halts]
    if lateness_s is not None and lateness_s > SEND_LATENESS_S:
        faults += [f"requests were sent {lateness_s * 1000:.0f} ms late (p99)", *taken]
    if lag_s is not None and lag_s > LOOP_LAG_S:
        faults += [f"its loop ran {lag_s * 1000:.0f} ms late in half of all seconds", *taken]
    if gc_pause_s is not None and gc_pause_s > GC_PAUSE_S:
        faults.append(
            f"garbage collection stopped it for {gc_pause_s * 1000:.0f} ms at once: hold fewer objects in "
            "the locustfile, or spread the users over more load processes (--processes)"
        )
    if cpu_ratio is not None and cpu_ratio > CPU_RATIO:
        faults.append(f"a worker used {cpu_ratio:.0%} of its core")
    parked: list[float] = found["parked"]
    return ClientHealth(
        send_lateness_p99_s=lateness_s,
        loop_lag_s=lag_s,
        cpu_max_ratio=max(map(max, cpus), default=None),
        gc_pause_s=gc_pause_s,
        gc_total_s=_worst(inside, "client_gc_total_s"),
        parked_ratio=median(parked) if parked else None,
        parked_mostly_ratio=sorted(parked)[len(parked) // 5] if parked else None,
        burst_ratio=found["burst_ratio"],
        steal_ratio=None if steal is None else steal.mean_ratio,
        steal_max_ratio=None if steal is None else steal.max_ratio,
        cpu_wait_ratio=None if wait is None else wait.mean_ratio,
        cpu_wait_max_ratio=None if wait is None else wait.max_ratio,
        faults=tuple(dict.fromkeys(faults)),  # a reason that several share stands once
        halts=tuple(halts),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What others had, of the load process that lost most: the mean over the seconds, and the worst one."""

    mean_ratio: float
    max_ratio: float


def _share(samples: Sequence[Sample], signal: str) -> Share | None:
    seen = _by_worker(samples, signal)
    return Share(mean_ratio=max(map(fmean, seen)), max_ratio=max(map(max, seen))) if seen else None


def _taken(steal: Share | None, wait: Share | None) -> list[str]:
    """Why a load process may have been late; no fault while the load is on time."""
    reasons = []
    if steal is not None and (steal.mean_ratio > STEAL_AMBER or steal.max_ratio > SECOND_RATIO):
        reasons.append(
            f"the hypervisor took {steal.mean_ratio:.0%} of its machine's processor time, in the worst "
            f"second {steal.max_ratio:.0%}: load from a machine with processors of its own"
        )
    if wait is not None and (wait.mean_ratio > CPU_WAIT_RATIO or wait.max_ratio > SECOND_RATIO):
        reasons.append(
            f"it was ready and had no processor for {wait.mean_ratio:.0%} of the time, in the worst second "
            f"{wait.max_ratio:.0%}: end what else runs on its machine, or load from another"
        )
    return reasons


def _by_worker(samples: Sequence[Sample], signal: str) -> list[list[float]]:
    """The values of each load process."""
    found: dict[str, list[float]] = {}
    for sample in samples:
        if signal in sample.signals:
            found.setdefault(sample.target, []).append(sample.signals[signal])
    return list(found.values())


def _worst(samples: Sequence[Sample], signal: str) -> float | None:
    return max(map(max, _by_worker(samples, signal)), default=None)


def _outcomes(windows: Sequence[Window]) -> Question[Counter[str | None]]:
    """For those that no server is to blame for."""
    counts: Counter[str | None] = Counter()
    need = need_of(("outcome",), windows)
    while (part := (yield need)) is not None:
        for rows in started(part, windows):
            counts.update(rows.word_counts("outcome"))
    return counts


def _lateness_p99_s(windows: Sequence[Window]) -> Question[float | None]:
    def of_part(part: Columns) -> Latencies:
        return ({"lateness": send_lateness_s(rows)} for rows in started(part, windows))

    found = yield from exact_quantiles(need_of(NEEDED_BY_LATENESS, windows), of_part, (0.99,))
    return found["lateness"][0] if found else None


def _parked(samples: Sequence[Sample], windows: Sequence[Window]) -> Question[list[float]]:
    """Compares at the moments the server was looked at: requests in flight against running + waiting."""
    looks = [
        look for look in looks_in(samples, windows) if "running" in look.signals and "waiting" in look.signals
    ]
    under_way = yield from in_flight_at([look.at_ns for look in looks])
    return [
        (in_flight - (look.signals["running"] + look.signals["waiting"])) / in_flight
        for look, in_flight in zip(looks, under_way, strict=True)
        if in_flight
    ]
