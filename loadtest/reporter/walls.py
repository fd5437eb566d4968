"""Which wall stopped the growth, and was it the client itself? Ordered rules, each with evidence. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import Final

from loadtest.records import Sample
from loadtest.reporter.observation import ClientHealth, StageObservation, Wall, Window
from loadtest.reporter.stages import quantile
from loadtest.results import RunRows

SEND_LATENESS_S: Final = 0.020
LOOP_LAG_S: Final = 0.050
CPU_RATIO: Final = 0.80
KV_FULL_RATIO: Final = 0.95
SLOTS_FULL_RATIO: Final = 0.98
PARKED_RATIO: Final = 0.10


def client_health(rows: RunRows, windows: Sequence[Window]) -> ClientHealth:
    """Over the judged windows only: starting users is work that a steady load does not have."""
    inside = [
        sample
        for sample in rows.samples
        if sample.source == "client"
        and any(window.settled_ns <= sample.at_ns < window.end_ns for window in windows)
    ]
    late = sorted(
        request.send_lateness_s
        for request in rows.requests
        if request.send_lateness_s is not None
        and any(window.settled_ns <= request.intended_ns < window.end_ns for window in windows)
    )
    lags = [s.signals["client_loop_lag_max_s"] for s in inside if "client_loop_lag_max_s" in s.signals]
    cpus = [s.signals["client_cpu_ratio"] for s in inside if "client_cpu_ratio" in s.signals]
    lateness_s = quantile(late, 0.99) if late else None
    lag_s = median(lags) if lags else None
    cpu_ratio = median(cpus) if cpus else None
    faults = []
    if lateness_s is not None and lateness_s > SEND_LATENESS_S:
        faults.append(f"requests were sent {lateness_s * 1000:.0f} ms late (p99)")
    if lag_s is not None and lag_s > LOOP_LAG_S:
        faults.append(f"its loop ran {lag_s * 1000:.0f} ms late in half of all seconds")
    if cpu_ratio is not None and cpu_ratio > CPU_RATIO:
        faults.append(f"a worker used {cpu_ratio:.0%} of its core")
    return ClientHealth(
        send_lateness_p99_s=lateness_s,
        loop_lag_s=lag_s,
        cpu_max_ratio=max(cpus, default=None),
        parked_ratio=_parked(rows, windows),
        faults=tuple(faults),
    )


def _parked(rows: RunRows, windows: Sequence[Window]) -> float | None:
    """Compares at the moments the server was looked at: requests in flight against running + waiting."""
    shares = []
    for sample in rows.samples:
        if "running" not in sample.signals or "waiting" not in sample.signals:
            continue
        if not any(window.settled_ns <= sample.at_ns < window.end_ns for window in windows):
            continue
        in_flight = sum(r.intended_ns <= sample.at_ns < r.done_ns for r in rows.requests)
        if in_flight:
            counted = sample.signals["running"] + sample.signals["waiting"]
            shares.append((in_flight - counted) / in_flight)
    return median(shares) if shares else None


def name_wall(
    rows: RunRows,
    engine: Sequence[Sample],
    stages: Sequence[StageObservation],
    broken: StageObservation | None,
    slots: int | None,
) -> Wall:
    """The first rule that fits wins. Of the stage that did not hold, or of the highest one."""
    restarted = _restarted(engine)
    if restarted is not None:
        return Wall(name="invalid", evidence=restarted)
    if not stages:
        return Wall(name="none", evidence="no stage was judged")
    if broken is None:
        top = max(stages, key=lambda stage: stage.users)
        return Wall(name="none", evidence=f"every stage held, up to {top.users} users: the limit lies higher")
    if broken.client.faults:
        return Wall(name="client", evidence=f"the load generator: {'; '.join(broken.client.faults)}")
    return _server_wall(broken, slots)


def _restarted(engine: Sequence[Sample]) -> str | None:
    starts = [
        s.signals["process_start_time_seconds"] for s in engine if "process_start_time_seconds" in s.signals
    ]
    if any(later != earlier for earlier, later in pairwise(starts)):
        return "the server restarted during the run"
    if engine and all(sample.gap is not None for sample in engine[-3:]) and starts:
        return f"the server stopped answering during the run ({engine[-1].gap})"
    return None


def _server_wall(broken: StageObservation, slots: int | None) -> Wall:
    at = f"at {broken.users} users"
    refused = broken.outcomes.get("http_429", 0) + broken.outcomes.get("http_503_admission", 0)
    if refused:
        return Wall(name="admission", evidence=f"{refused} requests were refused {at} (429 or 503)")
    parked = broken.client.parked_ratio
    if parked is not None and parked > PARKED_RATIO:
        evidence = (
            f"{parked:.0%} of the requests in flight {at} were neither running nor waiting in the engine"
        )
        return Wall(name="network", evidence=evidence)
    queued = bool(broken.preemptions) or (broken.waiting_median or 0.0) >= 1.0
    usage, running = broken.kv_usage_max_ratio, broken.running_max
    seats_full = slots is not None and running is not None and running >= SLOTS_FULL_RATIO * slots
    if queued and usage is not None and usage >= KV_FULL_RATIO and not seats_full:
        what = f"{broken.preemptions:.0f} preemptions" if broken.preemptions else "a queue"
        return Wall(name="kv", evidence=f"{what} {at}, KV cache {usage:.0%} full")
    if queued and seats_full:
        return Wall(name="slots", evidence=f"{running:.0f} of {slots} slots taken {at} while requests waited")
    if queued:
        return Wall(name="prefill", evidence=f"requests waited {at} with KV cache and slots free")
    return Wall(name="slo", evidence=f"{'; '.join(broken.faults)} {at}, without a queue")
