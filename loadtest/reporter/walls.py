"""Which wall stopped the growth, and was it the client itself? Ordered rules, each with evidence. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import median
from typing import Final

from loadtest.columns import Columns
from loadtest.records import Sample
from loadtest.reporter.bursts import burst_ratio
from loadtest.reporter.innocence import PARKED_RATIO, WAY_MAX_S
from loadtest.reporter.latency import NEEDED_BY_LATENESS, Latencies, exact_quantiles, send_lateness_s
from loadtest.reporter.looks import looks_in
from loadtest.reporter.observation import ClientHealth, StageObservation, Wall, Window
from loadtest.reporter.question import Question, need_of, started, together
from loadtest.reporter.stages import in_flight_at

SEND_LATENESS_S: Final = 0.020
LOOP_LAG_S: Final = 0.050
GC_PAUSE_S: Final = LOOP_LAG_S
"""Of the processor, at once: so long no token is dated, and everyone under way looks slow."""
STANDSTILL_S: Final = 2.0
"""Once is enough: nobody was asked anything meanwhile."""
CPU_RATIO: Final = 0.80
KV_FULL_RATIO: Final = 0.95
SLOTS_FULL_RATIO: Final = 0.98
BURSTS_RATIO: Final = 0.50
OUTSIDE_S: Final = 0.050
"""Of the mean time to first token, beyond what the way takes at a lower load."""
NOTABLE_RATIO: Final = 0.05
PLATEAU_SLOPE: Final = 0.1
ONE_SIDED_95: Final = 1.645


def client_health(samples: Sequence[Sample], windows: Sequence[Window]) -> Question[ClientHealth]:
    """Over the judged windows only: starting users is work that a steady load does not have."""
    inside = [look for look in looks_in(samples, windows) if look.source == "client"]
    lags = _by_worker(inside, "client_loop_lag_max_s")
    cpus = _by_worker(inside, "client_cpu_ratio")
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
    if longest_s > STANDSTILL_S:
        halts.append(f"it stood still for {longest_s:.1f} s")
    faults = [*halts]
    if lateness_s is not None and lateness_s > SEND_LATENESS_S:
        faults.append(f"requests were sent {lateness_s * 1000:.0f} ms late (p99)")
    if lag_s is not None and lag_s > LOOP_LAG_S:
        faults.append(f"its loop ran {lag_s * 1000:.0f} ms late in half of all seconds")
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
        faults=tuple(faults),
        halts=tuple(halts),
    )


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


def name_wall(stages: Sequence[StageObservation], broken: StageObservation | None, slots: int | None) -> Wall:
    """The first rule that fits wins, the next that fits is the runner-up. Of the stage that did not hold, or
    of the highest one.
    """
    if not stages:
        return Wall(name="none", evidence="no stage was judged")
    if broken is None:
        return _unbroken_wall(stages)
    wall, *others = _rules(stages, broken, slots)
    if broken.shortfall and wall.name == "slo":  # the engine shows no reason why nobody was free
        evidence = f"{broken.shortfall}: give the stage more `users`"
        wall, others = Wall(name="client", evidence=evidence), [wall, *others]
    return replace(wall, runner_up=next((other for other in others if other.name != wall.name), None))


def _unbroken_wall(stages: Sequence[StageObservation]) -> Wall:
    top = max(stages, key=lambda stage: stage.users)
    for wall in _plateau(stages, top):
        return wall
    seen = "" if all(stage.is_fully_seen for stage in stages) else ", as far as the server shows"
    return Wall(name="none", evidence=f"every stage held{seen}, up to {top.name}: the limit lies higher")


def _rules(stages: Sequence[StageObservation], broken: StageObservation, slots: int | None) -> Iterator[Wall]:
    """Every rule that fits, in order of precedence; there is always one."""
    if broken.shortfall and broken.rate_per_s is None:
        evidence = f"{broken.shortfall} at {broken.name}: the load generator was too slow"
        yield Wall(name="client", evidence=evidence)
    if broken.client.faults:
        yield Wall(name="client", evidence=f"the load generator: {'; '.join(broken.client.faults)}")
    yield from _outside_walls(stages, broken)
    yield from _engine_walls(broken, slots)
    if broken.slo_violations > NOTABLE_RATIO * broken.requests:
        evidence = (
            f"{broken.slo_violations} of {broken.requests} requests broke a latency limit {_at(broken)}"
        )
        yield Wall(name="slo", evidence=evidence)
    yield from _plateau(stages, broken)


def _outside_walls(stages: Sequence[StageObservation], broken: StageObservation) -> Iterator[Wall]:
    at = _at(broken)
    refused = broken.outcomes.get("http_429", 0) + broken.outcomes.get("http_503_admission", 0)
    if refused:
        yield Wall(name="admission", evidence=f"{refused} requests were refused {at} (429 or 503)")
    parked = broken.client.parked_ratio
    if parked is not None and parked > PARKED_RATIO:
        evidence = (
            f"{parked:.0%} of the requests in flight {at} were neither running nor waiting in the engine"
        )
        yield Wall(name="network", evidence=evidence)
    bursts = broken.client.burst_ratio
    if bursts is not None and bursts > BURSTS_RATIO:
        evidence = (
            f"{bursts:.0%} of the answers {at} came in bursts, most of their tokens several to a read: "
            "held back by a proxy that buffers, or by an API server that falls behind its engine"
        )
        yield Wall(name="network", evidence=evidence)
    if (found := broken.first_tokens) is not None:
        late_s = _outside_s(broken) - _usual_outside_s(stages, broken)
        if late_s > max(OUTSIDE_S, found.server_s):
            evidence = (
                f"first tokens took {found.client_s * 1000:,.0f} ms {at} by our clock and "
                f"{found.server_s * 1000:,.0f} ms by the engine's: they waited in front of it"
            )
            yield Wall(name="network", evidence=evidence)


def _outside_s(stage: StageObservation) -> float:
    """Mean time to first token that the server's own clock does not know of, seconds."""
    found = stage.first_tokens
    return 0.0 if found is None else found.client_s - found.server_s


def _usual_outside_s(stages: Sequence[StageObservation], broken: StageObservation) -> float:
    """The least of the stages below: the way to the server and back, whatever the load."""
    below = [stage for stage in stages if stage.users < broken.users and stage.held and stage.first_tokens]
    usual_s = min((_outside_s(stage) for stage in below), default=0.0)
    return min(max(0.0, usual_s), WAY_MAX_S)


def _engine_walls(broken: StageObservation, slots: int | None) -> Iterator[Wall]:
    at = _at(broken)
    usage, running = broken.kv_usage_max_ratio, broken.running_max
    full = "" if usage is None else f", KV cache {usage:.0%} full"
    full += "" if broken.uneven is None else f", {broken.uneven}"
    # An engine preempts for one reason only: no free block. A look each second may miss the moment.
    if broken.preemptions:
        yield Wall(name="kv", evidence=f"{broken.preemptions:.0f} preemptions {at}{full}")
    elif not _is_queued(broken):
        quiet = "" if broken.waiting_median is None else ", without a queue"
        yield Wall(name="slo", evidence=f"{'; '.join(broken.faults)} {at}{quiet}")
    if not _is_queued(broken):
        return
    waited = f"while requests waited{_growing(broken)}"
    are_slots_full = slots is not None and running is not None and running >= SLOTS_FULL_RATIO * slots
    is_cache_full = usage is not None and usage >= KV_FULL_RATIO
    if are_slots_full:
        yield Wall(name="slots", evidence=f"{running:.0f} of {slots} slots taken {at} {waited}")
    if is_cache_full:
        yield Wall(name="kv", evidence=f"a queue {at}{_growing(broken)}{full}")
    elif slots is None and _stands_still(broken):
        evidence = f"running stood at {running:.0f} {at} {waited}{full}: max_num_seqs, probably"
        yield Wall(name="slots", evidence=evidence)
    elif not are_slots_full:
        free = f"requests waited {at}{_growing(broken)}{full or ', KV cache not seen'}"
        yield Wall(name="prefill", evidence=free if slots is None else f"{free}, with slots free")


def _at(stage: StageObservation) -> str:
    return f"at {stage.name}"


def _is_queued(stage: StageObservation) -> bool:
    """A queue stood, or one surely grew, by as much as would be a queue."""
    waiting, growth = stage.waiting_median, stage.waiting_growth
    if waiting is None:
        return False
    grew = growth is not None and growth.low > 0 and growth.slope * stage.window_s >= stage.queue_from
    return waiting >= stage.queue_from or grew


def _growing(stage: StageObservation) -> str:
    growth = stage.waiting_growth
    return f" (the queue grew by {growth.slope:.2g} a second)" if growth and growth.low > 0 else ""


def _stands_still(broken: StageObservation) -> bool:
    """A batch that never changes size is full; one that waits for prefills breathes."""
    mean, most = broken.running_mean, broken.running_max
    return mean is not None and most is not None and mean >= SLOTS_FULL_RATIO * most


def _plateau(stages: Sequence[StageObservation], top: StageObservation) -> Iterator[Wall]:
    """d ln(tokens/s) / d ln(in flight) from the level below: near 1 where the load is light, 0 where more
    users only wait longer.
    """
    below = max((stage for stage in stages if stage.users < top.users), key=lambda s: s.users, default=None)
    if below is None or not 0 < below.in_flight_mean < top.in_flight_mean:
        return
    before, after = below.token_rate, top.token_rate
    if before is None or after is None:
        return
    span = math.log(top.in_flight_mean / below.in_flight_mean)
    slope = math.log(after.per_s / before.per_s) / span
    spread = math.hypot(before.error_per_s / before.per_s, after.error_per_s / after.per_s) / span
    highest = slope + ONE_SIDED_95 * spread
    if highest < PLATEAU_SLOPE:
        evidence = (
            f"{before.per_s:,.0f} tokens/s at {below.name} and {after.per_s:,.0f} {_at(top)}: "
            f"of each 1% more requests at most {max(highest, 0.0):.2f}% become throughput"
        )
        yield Wall(name="plateau", evidence=evidence)
