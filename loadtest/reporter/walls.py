"""Which wall stopped the growth? Ordered rules, each with evidence. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from loadtest.reporter.innocence import PARKED_RATIO, WAY_MAX_S
from loadtest.reporter.observation import StageObservation, Wall

KV_FULL_RATIO: Final = 0.95
SLOTS_FULL_RATIO: Final = 0.98
BURSTS_RATIO: Final = 0.50
OUTSIDE_S: Final = 0.050
"""Of the mean time to first token, beyond what the way takes at a lower load."""
NOTABLE_RATIO: Final = 0.05
PLATEAU_SLOPE: Final = 0.1
ONE_SIDED_95: Final = 1.645


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
