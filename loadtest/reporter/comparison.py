"""Two runs -> what differs, and whether that is a fall, noise, or cannot be told. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from statistics import NormalDist
from typing import Final, Literal

from loadtest.reporter.differences import Difference, differences
from loadtest.reporter.snapshot import Figure, Level, Snapshot

Answer = Literal["same", "better", "worse", "unknown"]
EXIT_CODES: Final[Mapping[Answer, int]] = {"same": 0, "better": 0, "worse": 1, "unknown": 4}
TOLERANCE: Final = 0.05
ERROR_SHARE: Final = 0.05
"""How often two runs of the same server may be told apart, all figures together."""
HIGHER_IS_BETTER: Final = frozenset({"n_safe", "n_max", "output_tokens_per_s"})
RARE: Final = "_p99_s"
"""Quantiles that few runs can bound: judged only where both did."""
Ends = tuple[float | None, float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One figure of two runs. `ratio` is new over old less one; its interval holds for all figures together.

    `users` is None for a limit of the whole run; an end of the interval that is None is not known.
    """

    name: str
    users: int | None
    rate_per_s: float | None
    old: Figure
    new: Figure
    ratio: float
    low: float | None
    high: float | None
    answer: Answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """`reason` says why the answer is unknown, where no single figure is."""

    old: Snapshot
    new: Snapshot
    tolerance: float
    differences: tuple[Difference, ...]
    changes: tuple[Change, ...]
    answer: Answer
    reason: str = ""

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.answer]


def compare(old: Snapshot, new: Snapshot, *, tolerance: float = TOLERANCE) -> Comparison:
    """`tolerance` is the share by which a figure may be worse before it is a fall, 0.05 for 5%."""
    changes = _changes(old, new, tolerance)
    void = next((run for run in (old, new) if run.status == "VOID"), None)
    reason = "" if void is None else f"{void.run_id} is VOID: {void.reason}"
    if not reason and not any(change.users is not None for change in changes):
        reason = "no concurrency is common to both runs, so their latencies cannot be compared"
    answer = _overall(changes)
    if void is not None or (reason and answer in ("same", "better")):
        answer = "unknown"
    return Comparison(
        old=old,
        new=new,
        tolerance=tolerance,
        differences=tuple(differences(old, new)),
        changes=changes,
        answer=answer,
        reason=reason if answer == "unknown" else "",
    )


def _overall(changes: tuple[Change, ...]) -> Answer:
    seen = {change.answer for change in changes}
    order: tuple[Answer, ...] = ("worse", "unknown", "better", "same")
    return next((answer for answer in order if answer in seen), "unknown")


def _changes(old: Snapshot, new: Snapshot, tolerance: float) -> tuple[Change, ...]:
    shared = [
        (before, after, name)
        for before, after in _common_levels(old, new)
        for name in before.figures
        if name in after.figures and not (name.endswith(RARE) and _is_open(before, after, name))
    ]
    widening = _widening(len(shared))
    limits = [
        _change(name, None, (getattr(old, name), getattr(new, name)), _bracket, tolerance)
        for name in ("n_safe", "n_max")
    ]
    return (
        *limits,
        *(
            _change(
                name,
                before,
                (before.figures[name], after.figures[name]),
                partial(_ratio_interval, widening=widening),
                tolerance,
            )
            for before, after, name in shared
        ),
    )


def _common_levels(old: Snapshot, new: Snapshot) -> Iterator[tuple[Level, Level]]:
    """Levels both runs stood at, as far as the old one held them: what never held is no promise to keep."""
    before, after = _by_load(old), _by_load(new)
    for load in sorted(before.keys() & after.keys()):
        if before[load].held:
            yield before[load], after[load]


def _by_load(run: Snapshot) -> dict[tuple[int, float], Level]:
    """Where a level was visited more than once, the visit with most requests."""
    ordered = sorted(run.levels, key=lambda level: (_load(level), level.requests))
    return {load: list(visits)[-1] for load, visits in groupby(ordered, key=_load)}


def _load(level: Level) -> tuple[int, float]:
    return level.users, level.rate_per_s or 0.0


def _is_open(before: Level, after: Level, name: str) -> bool:
    return any(None in (level.figures[name].low, level.figures[name].high) for level in (before, after))


def _widening(figures: int) -> float:
    """Bonferroni: so many 95% intervals, each as much wider that together they err in ERROR_SHARE."""
    normal = NormalDist()
    return normal.inv_cdf(1 - ERROR_SHARE / 2 / max(figures, 1)) / normal.inv_cdf(0.975)


def _change(
    name: str,
    level: Level | None,
    pair: tuple[Figure, Figure],
    interval: Callable[[Figure, Figure], Ends],
    tolerance: float,
) -> Change:
    old, new = pair
    ratio = _ratio(new.value, old.value)
    low, high = interval(old, new)
    return Change(
        name=name,
        users=None if level is None else level.users,
        rate_per_s=None if level is None else level.rate_per_s,
        old=old,
        new=new,
        ratio=ratio,
        low=low,
        high=high,
        answer=_answer(name, ratio, (low, high), tolerance),
    )


def _answer(name: str, ratio: float, ends: Ends, tolerance: float) -> Answer:
    """Within the tolerance is the same; beyond it, a change is one whose interval leaves out "none"."""
    if abs(ratio) <= tolerance:
        return "same"
    is_better = (ratio > 0) == (name in HIGHER_IS_BETTER)
    nearest = ends[0] if ratio > 0 else ends[1]
    if nearest is not None and nearest * ratio > 0:
        return "better" if is_better else "worse"
    return "same" if is_better else "unknown"


def _bracket(old: Figure, new: Figure) -> Ends:
    """Of limits that are known to lie between two levels: every pair of values is possible."""
    low = None if old.high is None or new.low is None else _ratio(new.low, old.high)
    high = None if new.high is None or old.low is None else _ratio(new.high, old.low)
    return low, high


def _ratio_interval(old: Figure, new: Figure, widening: float) -> Ends:
    """From the two intervals, on the logarithm, where the distances of independent figures add as squares.

    Source: Zou and Donner (2008), Construction of confidence limits about effect measures (MOVER).
    """
    centre = _log(new.value, old.value)
    if centre is None:
        return None, None
    down = _distance((new.low, new.value), (old.value, old.high))
    up = _distance((new.value, new.high), (old.low, old.value))
    return (
        None if down is None else math.expm1(centre - widening * down),
        None if up is None else math.expm1(centre + widening * up),
    )


def _distance(*spans: tuple[float | None, float | None]) -> float | None:
    logs = [_log(high, low) for low, high in spans]
    known = [log for log in logs if log is not None]
    return math.hypot(*known) if len(known) == len(logs) else None


def _log(over: float | None, under: float | None) -> float | None:
    return math.log(over / under) if over and under else None


def _ratio(new: float, old: float) -> float:
    if old:
        return new / old - 1
    return 0.0 if new == old else math.inf
