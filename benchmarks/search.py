"""python benchmarks/search.py: does the search find limits that are known, and in how many minutes?

300 random simulated servers (--servers), each with its true limit from long runs. The search starts from a
prediction up to 30% wrong; a grid of ten levels and doubling from one user are told in the same table.
Then: how often is a server signed whose share of violations is exactly the limit?
With --keep FOLDER it goes on where it was stopped; remove rows.jsonl there to search the same servers anew.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from search_servers import USERS_MAX, KnownServer, Q, drive, random_server, true_limit, violation_rate

from loadtest.conductor.search import Command, Search
from loadtest.conductor.search.course import SearchPlan
from loadtest.conductor.search.level import Cohort
from loadtest.reporter.buffer import safe_limit
from loadtest.sequential import Certificate, weigh_once

GRID_LEVELS = 10
GRID_HOLD_S = 120.0
GRID_SETTLE_S = 20.0
BUDGET_S = 60 * 60.0
SEEDS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One method on one server."""

    method: str
    wall: str
    seed: int
    truth: int
    n_max: int
    levels: int
    minutes: float
    search_minutes: float
    verdict: str
    is_unsafe: bool
    is_monotone: bool = True

    @property
    def error(self) -> float:
        return self.n_max / self.truth - 1


class Grid:
    """Ten even steps up to 1.5 times the prediction, two minutes each; the highest that seems to hold."""

    def __init__(self, top: int) -> None:
        self.levels = sorted({max(1, round(top * (i + 1) / GRID_LEVELS)) for i in range(GRID_LEVELS)})
        self.level = 0
        self.n_max = 0
        self._began_s = self._at_s = 0.0
        self._cohort = Cohort()
        self._counts = False

    @property
    def command(self) -> Command:
        if self.level == len(self.levels):
            return Command(phase="stop", users=0, level=self.level, why="")
        return Command(phase="judge", users=self.levels[self.level], level=self.level, why="")

    def settled(self, at_s: float) -> None: ...

    def sent(self, request_id: str, at_s: float) -> None:
        if self._counts:
            self._cohort.sent(request_id)

    def judged(self, request_id: str, violates: bool) -> None:
        self._cohort.judged(request_id, violates)

    def tick(self, at_s: float) -> Command:
        self._counts = at_s - self._began_s >= GRID_SETTLE_S
        if at_s - self._began_s >= GRID_HOLD_S:
            seen = self._cohort.oldest
            if seen and self._cohort.violations / self._cohort.sent_count <= Q:
                self.n_max = self.levels[self.level]
            self.level, self._began_s, self._cohort, self._counts = self.level + 1, at_s, Cohort(), False
        return self.command


class Kept:
    """Lines of JSON in a file, one for each server; without a folder, in memory alone."""

    def __init__(self, folder: Path | None, name: str) -> None:
        self.path = folder / name if folder else None
        lines = self.path.read_text().splitlines() if self.path and self.path.exists() else []
        self.by_seed: dict[int, Any] = {one["seed"]: one["value"] for one in map(json.loads, lines)}

    def add(self, seed: int, value: Any) -> None:
        self.by_seed[seed] = value
        if self.path:
            with self.path.open("a") as file:
                file.write(json.dumps({"seed": seed, "value": value}) + "\n")


def measure(truths: dict[int, int], compare_every: int, seed: int) -> tuple[int, int, list[Row]]:
    server = random_server(seed)
    truth = truths[seed] if seed in truths else true_limit(server)
    return seed, truth, rows_of(server, seed, truth, compares=not seed % compare_every) if truth else []


def rows_of(server: KnownServer, seed: int, truth: int, *, compares: bool) -> list[Row]:
    factor = random.Random(f"prediction {seed}").uniform(0.7, 1.3)
    predicted = min(max(1, round(truth * factor)), server.limits.max_num_seqs, USERS_MAX)
    rows = [_searched("predicted, x1.25, bisect, SPRT", server, truth, (seed, predicted, 1.25))]
    if compares:
        rows.append(_searched("double from 1, bisect, SPRT", server, truth, (seed, 1, 2.0)))
        rows.append(_gridded(server, truth, seed, predicted))
    return rows


def _searched(method: str, server: KnownServer, truth: int, how: tuple[int, int, float]) -> Row:
    seed, start, ratio = how
    plan = SearchPlan(
        start_users=start,
        users_max=USERS_MAX,
        q=Q,
        safe_users=safe_limit,
        budget_s=BUDGET_S,
        bracket_ratio=ratio,
    )
    search = Search(plan, at_s=0.0)
    drive(search, server, seed=seed)
    result = search.result
    assert result is not None
    searched = [p for p in result.probes if p.choice.role == "search"]
    return Row(
        method=method,
        wall=server.wall,
        seed=seed,
        truth=truth,
        n_max=result.n_max,
        levels=len(searched),
        minutes=result.minutes,
        search_minutes=sum(p.ended_s - p.began_s for p in searched) / 60,
        verdict=result.verdict,
        is_unsafe=result.verdict == "PASS" and _is_unsafe(server, truth, result.n_safe),
        is_monotone=result.is_monotone,
    )


def _gridded(server: KnownServer, truth: int, seed: int, predicted: int) -> Row:
    grid = Grid(round(1.5 * predicted))
    minutes = drive(grid, server, seed=seed) / 60
    return Row(
        method=f"grid of {GRID_LEVELS} x {GRID_HOLD_S:g} s",
        wall=server.wall,
        seed=seed,
        truth=truth,
        n_max=grid.n_max,
        levels=len(grid.levels),
        minutes=minutes,
        search_minutes=minutes,
        verdict="",
        is_unsafe=bool(grid.n_max) and _is_unsafe(server, truth, safe_limit(grid.n_max)),
    )


def _is_unsafe(server: KnownServer, truth: int, n_safe: int) -> bool:
    return n_safe > truth and violation_rate(server, n_safe) > Q


def table(rows: list[Row]) -> None:
    print(
        f"{'method':32} servers  within 5%   error p5..p95  levels  min search  min all (p90)  PASS  unsafe"
    )
    for method in dict.fromkeys(row.method for row in rows):
        mine = [row for row in rows if row.method == method]
        errors = sorted(row.error for row in mine)
        near = sum(_is_near(row) for row in mine) / len(mine)
        minutes = sorted(row.minutes for row in mine)
        p5, p95 = errors[len(errors) // 20], errors[-1 - len(errors) // 20]
        print(
            f"{method:32} {len(mine):7} {near:9.1%} {p5:+8.1%}..{p95:+.1%} "
            f"{median(row.levels for row in mine):6g} {median(row.search_minutes for row in mine):10.1f} "
            f"{median(minutes):8.1f} ({minutes[len(minutes) * 9 // 10]:.1f}) "
            f"{sum(row.verdict == 'PASS' for row in mine):6} {sum(row.is_unsafe for row in mine):6}"
        )


def _is_near(row: Row) -> bool:
    return abs(row.n_max - row.truth) <= max(1, 0.05 * row.truth)


def outliers(rows: list[Row]) -> None:
    for row in rows:
        if row.method.startswith("predicted") and (not _is_near(row) or row.is_unsafe or not row.is_monotone):
            print(
                f"  seed {row.seed} ({row.wall}): found {row.n_max}, true {row.truth} ({row.error:+.1%}), "
                f"{row.levels} levels, {row.verdict}{'' if row.is_monotone else ', non-monotone'}"
            )


def clustered(rng: random.Random, n: int, design_effect: float, cluster: int) -> list[bool]:
    """Violations at rate Q; those of a cluster of consecutive requests resemble each other."""
    shared = math.sqrt((design_effect - 1) / (cluster - 1)) if cluster > 1 else 0.0
    drawn: list[bool] = []
    while len(drawn) < n:
        fate = rng.random() < Q
        drawn += [fate if rng.random() < shared else rng.random() < Q for _ in range(cluster)]
    return drawn[:n]


def honesty(seeds: int) -> None:
    print(f"\nTrue share exactly {Q:.0%}: signed in so many of {seeds} seeds (at most 5% is honest)")
    print(f"{'design effect':>13} {'cluster':>8} {'certificate':>12} {'one look at 600':>16} {'at 2400':>9}")
    certificate = Certificate(q=Q)
    for effect, cluster in ((1, 1), (4, 4), (4, 20), (4, 60), (8, 8), (8, 40), (8, 100)):
        signed = [0, 0, 0]
        for seed in range(seeds):
            drawn = clustered(random.Random(seed), 2400, effect, cluster)
            signed[0] += _is_signed(certificate, drawn)
            signed[1] += weigh_once(drawn[:600], q=Q).answer == "good"
            signed[2] += weigh_once(drawn, q=Q).answer == "good"
        shares = [100 * count / seeds for count in signed]
        print(f"{effect:13} {cluster:8} {shares[0]:11.1f}% {shares[1]:15.1f}% {shares[2]:8.1f}%")


def _is_signed(certificate: Certificate, drawn: list[bool]) -> bool:
    for number in range(certificate.looks):
        answer = certificate.look(number, drawn[: certificate.requests_at(number)]).answer
        if answer != "unknown":
            return answer == "good"
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--servers", type=int, default=300)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--compare-every", type=int, default=1, help="the other methods on each n-th seed")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--keep", type=Path, help="folder of the limits and the rows found so far")
    given = parser.parse_args()
    seeds = range(given.first_seed, given.first_seed + given.servers)
    if given.keep:
        given.keep.mkdir(parents=True, exist_ok=True)
    truths, kept = Kept(given.keep, "truths.jsonl"), Kept(given.keep, "rows.jsonl")
    with ProcessPoolExecutor(given.jobs) as pool:
        missing = [seed for seed in seeds if seed not in kept.by_seed]
        work = partial(measure, truths.by_seed, given.compare_every)
        for seed, truth, found in pool.map(work, missing):
            if seed not in truths.by_seed:
                truths.add(seed, truth)
            kept.add(seed, [asdict(row) for row in found])
            print(f"{len(kept.by_seed)} servers", end="\r", file=sys.stderr, flush=True)
    rows = [Row(**row) for seed in seeds for row in kept.by_seed[seed]]
    if rows:
        table(rows)
        outliers(rows)
    if given.seeds:
        honesty(given.seeds)


if __name__ == "__main__":
    main()
