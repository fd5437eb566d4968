"""What a server will look like at each concurrency, by the virtual clock: levels in, rows out, by a seed.

Every level is a closed loop of users that start one after another over a whole cycle; a second cycle is cut
as warm-up, and the rest is measured. How long follows from the work: enough requests for a percentile.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from statistics import fmean
from typing import Final

from estimator.capacity import Prediction
from estimator.spec import Interval, Lengths, SpecError, Workload
from estimator.twin.cost import FrontEndCost, ServerCost, scaled, step_seconds
from estimator.twin.goals import Goal, e2e_s, judged
from estimator.twin.limits import EngineLimits
from estimator.twin.scheduler import SchedulerLimits
from estimator.twin.virtual import ClosedLoop, History, closed_loop

SHARES: Final = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
"""Of the concurrency at which the server is full: N_saturation or its slots, whichever is less."""
APART: Final = 0.04
"""A share that lies nearer than this to N_guaranteed or N_sustained would tell nothing new."""
LEVELS_MIN: Final = 6
WARM_UP_CYCLES: Final = 2.0
"""The first brings the users in, the second lets the phases of their requests mix."""
REQUESTS_MIN: Final = 300
"""Finished in what is measured, so that fifteen lie above a 95th percentile."""
STEPS_MAX: Final = 5_000
"""Measured in one level: few users, or long answers, are judged by fewer requests, by one each at least."""
SHARES_OF_LENGTHS: Final = 64
HOUR_S: Final = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One level at one speed of the server: means over time, counts a second or an hour, seconds."""

    running: float
    waiting: float
    kv_usage: float
    preemptions_per_hour: float
    output_tokens_per_s: float
    requests_per_s: float
    ttft_p50_s: float
    ttft_p95_s: float
    tpot_p50_s: float
    tpot_p95_s: float
    within_ratio: float
    """Share of requests that keep every limit of the goal; 1 without one."""
    broken: tuple[str, ...]
    """Limits that too few requests keep, by their names in the goal, when within_ratio is too low."""
    requests: int
    simulated_s: float
    """Measured, the warm-up left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One concurrency: as likely, and at both ends of the cost's range."""

    users: int
    fast: Seen
    """Of a server whose steps take low_factor of what is likely."""
    likely: Seen
    slow: Seen
    """Of one whose steps take high_factor."""

    def interval(self, quantity: Callable[[Seen], float]) -> Interval:
        ends = sorted((quantity(self.fast), quantity(self.slow)))
        likely = quantity(self.likely)
        # a closed loop that preempts can be a little better off when it is slower
        return Interval(low=min(ends[0], likely), likely=likely, high=max(ends[1], likely))


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Rows by rising concurrency, and what they say together."""

    rows: tuple[Row, ...]
    full_at: float
    """Concurrency at which the server is full by arithmetic: min(N_saturation, slots)."""
    full_by: str
    """What fills first: "kv" or "slots"."""
    plateau: float | None
    """Mean running under the highest load, once there is a queue; None where none formed."""

    def n_slo(self, seen: Callable[[Row], Seen] = attrgetter("likely")) -> int:
        """The highest level up to which all meet the goal; 0 when not even the first does."""
        held = 0
        for row in self.rows:
            if seen(row).broken:
                break
            held = row.users
        return held

    @property
    def n_slo_range(self) -> Interval:
        """Over the cost's range; a server that preempts can keep a limit though its steps are slower."""
        ends = [self.n_slo(attrgetter(speed)) for speed in ("slow", "likely", "fast")]
        return Interval(low=min(ends), likely=ends[1], high=max(ends))

    @property
    def first_broken(self) -> Row | None:
        return next((row for row in self.rows if row.likely.broken), None)


def forecast(
    limits: SchedulerLimits,
    cost: ServerCost,
    prediction: Prediction,
    goal: Goal,
    *,
    seed: int = 1,
    levels: Sequence[int] | None = None,
) -> Forecast:
    """Every level simulated once for each speed. Raises SpecError when a request could never fit."""
    rows = tuple(
        _row(_level(limits, prediction, users, seed), cost, goal) for users in levels or levels_of(prediction)
    )
    last = rows[-1].likely
    return Forecast(
        rows=rows,
        full_at=full_at(prediction),
        full_by="kv" if full_at(prediction) == prediction.n_saturation else "slots",
        plateau=last.running if last.waiting > 0.5 else None,
    )


def full_at(prediction: Prediction) -> float:
    """Concurrency at which the server is full: N_saturation, or its slots when they are fewer."""
    return min(prediction.n_saturation, prediction.n_slots or math.inf)


def levels_of(prediction: Prediction) -> tuple[int, ...]:
    """Six to eight concurrencies: N_guaranteed, N_sustained and shares of where the server is full.

    N_guaranteed and N_sustained only where the slots do not stop the server before.
    """
    most = full_at(prediction)
    promised = [n for n in (prediction.n_guaranteed, prediction.n_sustained) if n and n <= most]
    shares = {max(1, math.floor(share * most + 0.5)) for share in SHARES}
    levels = {*promised, *(n for n in shares if all(abs(n - known) > APART * known for known in promised))}
    extra = 1
    while len(levels) < LEVELS_MIN:  # a server of a few requests: one after the other
        levels.add(extra)
        extra += 1
    return tuple(sorted(levels))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Level:
    """A server and the users it has."""

    users: int
    limits: SchedulerLimits
    prediction: Prediction
    seed: int

    def measured(self, cost: ServerCost) -> _Measured:
        workload = self.prediction.workload
        cycle_s, steps = cycle(self.limits, cost, workload, self.users, full_at(self.prediction))
        cycles = max(1.0, min(REQUESTS_MIN / self.users, STEPS_MAX / steps))
        start_s = WARM_UP_CYCLES * cycle_s
        end_s = start_s + cycles * cycle_s
        loop = ClosedLoop(users=self.users, until_s=end_s, workload=workload, seed=self.seed, ramp_s=cycle_s)
        history = closed_loop(self.limits, cost, loop)
        return _Measured(users=self.users, history=history.between(start_s, end_s), span_s=end_s - start_s)


def _level(limits: SchedulerLimits, prediction: Prediction, users: int, seed: int) -> _Level:
    # A scenario's prompts share nothing: only a preempted request finds blocks of its own again.
    running = min(users, prediction.n_slots or users)
    if isinstance(limits, EngineLimits) and running <= (prediction.n_sustained or prediction.n_guaranteed):
        limits = replace(limits, enable_prefix_caching=False)
    return _Level(users=users, limits=limits, prediction=prediction, seed=seed)


def cycle(
    limits: SchedulerLimits, cost: ServerCost, workload: Workload, users: int, most: float
) -> tuple[float, float]:
    """Seconds and steps from one request of a user to the next, roughly: they set how long to simulate."""
    prompt, answer = mean_tokens(workload.input_tokens), mean_tokens(workload.output_tokens)
    running = max(1.0, min(users, most))
    a_step = (
        limits.max_num_batched_tokens if isinstance(limits, EngineLimits) else limits.max_prefill_token_num
    )
    steps = max(answer, running * (prompt + answer) / a_step)
    prefill = running * prompt / steps
    context = running * (prompt + answer / 2)
    step_s = step_seconds(cost.step, round(prefill), round(running), round(context))
    chunks_s = running * cost.front_end.chunk_s
    queue = users / running
    return (steps * max(step_s, chunks_s) + cost.front_end.request_s) * queue, steps * queue


def mean_tokens(lengths: Lengths) -> float:
    """Mean over evenly spaced shares of the distribution."""
    return fmean(lengths.at((i + 0.5) / SHARES_OF_LENGTHS) for i in range(SHARES_OF_LENGTHS))


def _row(level: _Level, cost: ServerCost, goal: Goal) -> Row:
    likely = level.measured(cost)

    def at(factor: float) -> Seen:
        if (
            cost.range_of_all or cost.front_end == FrontEndCost()
        ):  # all takes longer alike: the same history on a slower clock
            return likely.seen(goal, factor)
        return level.measured(replace(cost, step=scaled(cost.step, factor))).seen(goal)

    return Row(
        users=level.users, fast=at(cost.low_factor), likely=likely.seen(goal), slow=at(cost.high_factor)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    """What happened in `span_s` seconds of the virtual clock with so many users."""

    users: int
    history: History
    span_s: float

    def seen(self, goal: Goal, factor: float = 1.0) -> Seen:
        """The figures of a level. factor: how many times as long everything takes.

        Raises SpecError when nothing finished while it was measured.
        """
        history, requests, span_s = self.history, self.history.requests, factor * self.span_s
        if not requests:
            raise SpecError("no request finished in the simulated time; shorten the answers of the scenario")
        ttft = sorted(factor * request.ttft_s for request in requests)
        tpot = sorted(factor * request.tpot_s for request in requests if request.output_tokens > 1) or [0.0]
        within, broken = judged(requests, goal, factor)
        # By Little's law: requests that finish in waves would be counted too often or too seldom.
        requests_per_s = self.users / (factor * fmean(e2e_s(request) for request in requests))
        return Seen(
            running=history.mean(lambda sample: sample.running),
            waiting=history.mean(lambda sample: sample.waiting),
            kv_usage=history.mean(lambda sample: sample.kv_usage),
            preemptions_per_hour=history.preemptions / span_s * HOUR_S,
            output_tokens_per_s=requests_per_s * fmean(request.output_tokens for request in requests),
            requests_per_s=requests_per_s,
            ttft_p50_s=_quantile(ttft, 0.50),
            ttft_p95_s=_quantile(ttft, 0.95),
            tpot_p50_s=_quantile(tpot, 0.50),
            tpot_p95_s=_quantile(tpot, 0.95),
            within_ratio=within,
            broken=broken,
            requests=len(requests),
            simulated_s=span_s,
        )


def _quantile(ordered: Sequence[float], share: float) -> float:
    """The value that `share` of them do not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
