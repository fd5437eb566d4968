"""Which wall stopped the growth, and was it the client itself? Ordered rules, each with evidence. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import Final

from loadtest.reporter.bursts import burst_ratio
from loadtest.reporter.latency import NEEDED_BY_LATENESS, Latencies, exact_quantiles, send_lateness_s
from loadtest.reporter.observation import ClientHealth, StageObservation, Wall, Window
from loadtest.reporter.stages import in_flight_at
from loadtest.results import RunRows

SEND_LATENESS_S: Final = 0.020
LOOP_LAG_S: Final = 0.050
STANDSTILL_S: Final = 2.0
"""Once is enough: nobody was asked anything meanwhile."""
CPU_RATIO: Final = 0.80
KV_FULL_RATIO: Final = 0.95
SLOTS_FULL_RATIO: Final = 0.98
PARKED_RATIO: Final = 0.10
BURSTS_RATIO: Final = 0.50


def client_health(rows: RunRows, windows: Sequence[Window]) -> ClientHealth:
    """Over the judged windows only: starting users is work that a steady load does not have."""
    inside = [
        sample
        for sample in rows.samples
        if sample.source == "client"
        and any(window.settled_ns <= sample.at_ns < window.end_ns for window in windows)
    ]
    lags = [s.signals["client_loop_lag_max_s"] for s in inside if "client_loop_lag_max_s" in s.signals]
    cpus = [s.signals["client_cpu_ratio"] for s in inside if "client_cpu_ratio" in s.signals]
    lateness_s = _lateness_p99_s(rows, windows)
    lag_s = median(lags) if lags else None
    cpu_ratio = median(cpus) if cpus else None
    halts = []
    own = _own_faults(rows, windows)
    if lost := own["client_lost"]:
        halts.append(f"a load process died with {lost} requests in flight")
    if unsent := own["client_fd"] + own["client_ports"]:
        halts.append(f"{unsent} requests found no file descriptor or port on this machine")
    if lags and max(lags) > STANDSTILL_S:
        halts.append(f"it stood still for {max(lags):.1f} s")
    faults = [*halts]
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
        burst_ratio=burst_ratio(rows.requests, windows, lag_s),
        faults=tuple(faults),
        halts=tuple(halts),
    )


def _own_faults(rows: RunRows, windows: Sequence[Window]) -> Counter[str | None]:
    """Outcomes of the windows, for those that no server is to blame for."""
    counts: Counter[str | None] = Counter()
    for window in windows:
        for started in rows.requests.started_in(("outcome",), window.settled_ns, window.end_ns):
            counts.update(started.word_counts("outcome"))
    return counts


def _lateness_p99_s(rows: RunRows, windows: Sequence[Window]) -> float | None:
    def latencies() -> Latencies:
        for window in windows:
            for started in rows.requests.started_in(NEEDED_BY_LATENESS, window.settled_ns, window.end_ns):
                yield {"lateness": send_lateness_s(started)}

    found = exact_quantiles(latencies, (0.99,)).get("lateness")
    return found[0] if found else None


def _parked(rows: RunRows, windows: Sequence[Window]) -> float | None:
    """Compares at the moments the server was looked at: requests in flight against running + waiting."""
    looks = [
        sample
        for sample in rows.samples
        if "running" in sample.signals
        and "waiting" in sample.signals
        and any(window.settled_ns <= sample.at_ns < window.end_ns for window in windows)
    ]
    shares = [
        (in_flight - (look.signals["running"] + look.signals["waiting"])) / in_flight
        for look, in_flight in zip(looks, in_flight_at(rows.requests, [s.at_ns for s in looks]), strict=True)
        if in_flight
    ]
    return median(shares) if shares else None


def name_wall(stages: Sequence[StageObservation], broken: StageObservation | None, slots: int | None) -> Wall:
    """The first rule that fits wins. Of the stage that did not hold, or of the highest one."""
    if not stages:
        return Wall(name="none", evidence="no stage was judged")
    if broken is None:
        top = max(stages, key=lambda stage: stage.users)
        seen = "" if all(stage.is_fully_seen for stage in stages) else ", as far as the server shows"
        evidence = f"every stage held{seen}, up to {top.name}: the limit lies higher"
        return Wall(name="none", evidence=evidence)
    if broken.shortfall and broken.rate_per_s is None:
        evidence = f"{broken.shortfall} at {broken.name}: the load generator was too slow"
        return Wall(name="client", evidence=evidence)
    if broken.client.faults:
        return Wall(name="client", evidence=f"the load generator: {'; '.join(broken.client.faults)}")
    wall = _outside_wall(broken) or _engine_wall(broken, slots)
    if broken.shortfall and wall.name == "slo":  # the engine shows no reason why nobody was free
        return Wall(name="client", evidence=f"{broken.shortfall}: give the stage more `users`")
    return wall


def halted(stages: Sequence[StageObservation]) -> Wall | None:
    """The client, where it stopped asking for a while: no other figure of such a run can be trusted."""
    for stage in stages:
        if stage.client.halts:
            halts = "; ".join(stage.client.halts)
            return Wall(name="client", evidence=f"the load generator at {stage.name}: {halts}")
    return None


def _outside_wall(broken: StageObservation) -> Wall | None:
    at = f"at {broken.name}"
    refused = broken.outcomes.get("http_429", 0) + broken.outcomes.get("http_503_admission", 0)
    if refused:
        return Wall(name="admission", evidence=f"{refused} requests were refused {at} (429 or 503)")
    parked = broken.client.parked_ratio
    if parked is not None and parked > PARKED_RATIO:
        evidence = (
            f"{parked:.0%} of the requests in flight {at} were neither running nor waiting in the engine"
        )
        return Wall(name="network", evidence=evidence)
    bursts = broken.client.burst_ratio
    if bursts is not None and bursts > BURSTS_RATIO:
        evidence = (
            f"{bursts:.0%} of the answers {at} came in bursts, most of their tokens several to a read: "
            "held back by a proxy that buffers, or by an API server that falls behind its engine"
        )
        return Wall(name="network", evidence=evidence)
    return None


def _engine_wall(broken: StageObservation, slots: int | None) -> Wall:
    at = f"at {broken.name}"
    usage, running, waiting = broken.kv_usage_max_ratio, broken.running_max, broken.waiting_median
    full = "" if usage is None else f", KV cache {usage:.0%} full"
    # An engine preempts for one reason only: no free block. A look each second may miss the moment.
    if broken.preemptions:
        return Wall(name="kv", evidence=f"{broken.preemptions:.0f} preemptions {at}{full}")
    if waiting is None or waiting < broken.queue_from:
        quiet = "" if waiting is None else ", without a queue"
        return Wall(name="slo", evidence=f"{'; '.join(broken.faults)} {at}{quiet}")
    if slots is not None and running is not None and running >= SLOTS_FULL_RATIO * slots:
        return Wall(name="slots", evidence=f"{running:.0f} of {slots} slots taken {at} while requests waited")
    if usage is not None and usage >= KV_FULL_RATIO:
        return Wall(name="kv", evidence=f"a queue {at}{full}")
    if slots is None and _stands_still(broken):
        evidence = f"running stood at {running:.0f} {at} while requests waited{full}: max_num_seqs, probably"
        return Wall(name="slots", evidence=evidence)
    free = f"requests waited {at}{full or ', KV cache not seen'}"
    return Wall(name="prefill", evidence=free if slots is None else f"{free}, with slots free")


def _stands_still(broken: StageObservation) -> bool:
    """A batch that never changes size is full; one that waits for prefills breathes."""
    mean, most = broken.running_mean, broken.running_max
    return mean is not None and most is not None and mean >= SLOTS_FULL_RATIO * most
