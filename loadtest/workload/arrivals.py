"""When an open loop sends: the times of one process, dealt out to the load processes. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count, islice

from estimator.twin.arrivals import gamma_times_s
from loadtest.scenario.parts import Arrivals, ScenarioError
from loadtest.scenario.trace import Trace, trace_rows


def arrival_times_s(
    arrivals: Arrivals,
    rate_per_s: float | None,
    seed: int | str,
    worker: int,
    workers: int,
    trace: Trace | None = None,
) -> Iterator[float]:
    """When worker number `worker` of `workers` sends, seconds since the stage's start, ever later, endless.

    Every worker makes the times of the whole process and keeps each `workers`-th, so all together send
    exactly what one would, whatever the law: gamma arrivals that were thinned would be evener than asked.
    rate_per_s is that of the whole process; a trace has its own. Raises ScenarioError for a closed loop.
    """
    return islice(_process(arrivals, rate_per_s, seed, trace), worker, None, workers)


def _process(
    arrivals: Arrivals, rate_per_s: float | None, seed: int | str, trace: Trace | None
) -> Iterable[float]:
    if arrivals.kind == "trace" and trace is not None:
        return _played(trace)
    if arrivals.kind in ("closed", "trace") or rate_per_s is None:
        raise ScenarioError(f"arrivals of kind {arrivals.kind} have no times of their own")
    if arrivals.kind == "constant":
        return (number / rate_per_s for number in count(1))
    burstiness = 1.0 if arrivals.kind == "poisson" else arrivals.burstiness
    return gamma_times_s(rate_per_s, burstiness=burstiness, seed=seed)


def _played(trace: Trace) -> Iterator[float]:
    """The recording over and over; the mean gap lies between its end and its new beginning."""
    times_s = [row.at_s / trace.speed for row in trace_rows(trace)]
    round_s = times_s[-1] + (times_s[-1] / (len(times_s) - 1) if len(times_s) > 1 else 1.0)
    for lap in count():
        for at_s in times_s:
            yield lap * round_s + at_s
