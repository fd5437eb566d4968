"""python benchmarks/drift.py: how often does a soak cry wolf, and how often does it miss a drift?

Made-up soaks of 240 minutes whose minutes resemble their neighbours (AR(1) of 0, 0.5 and 0.8), judged by the
rule of loadtest/reporter/drift.py with no practical limit to help it, step test included.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from loadtest.columns import Floats
from loadtest.reporter.drift import DriftPlan, judge_minutes
from loadtest.reporter.drift_quantities import Quantity

MINUTES = 240
LEVEL = 100.0
ANY_RISE = Quantity(name="any", title="any", unit="count", rise=0.0)
WANTED = {"false alarms": "at most 5%", "drift of 2 sd": "at least 85%"}


def resembling(rng: np.random.Generator, phi: float) -> Floats:
    """Minutes of mean LEVEL and standard deviation 1, each `phi` times the one before plus news."""
    news = rng.standard_normal(MINUTES) * np.sqrt(1 - phi**2)
    values = np.empty(MINUTES)
    value = rng.standard_normal()
    for minute in range(MINUTES):
        value = phi * value + news[minute]
        values[minute] = value
    return LEVEL + values


def alarm_share(*, seed: int, series: int, phi: float, shape: Floats) -> float:
    """Of `series` soaks with `shape` added."""
    rng, plan = np.random.default_rng(seed), DriftPlan()
    alarms = 0
    for _ in range(series):
        minutes = dict(enumerate((resembling(rng, phi) + shape).tolist()))
        alarms += judge_minutes(ANY_RISE, "", minutes, None, plan).status == "drifts"
    return alarms / series


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--series", type=int, default=400, help="soaks for each figure")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    still = np.zeros(MINUTES)
    rising = 2 * np.linspace(0, 1, MINUTES)
    print(f"{options.series} soaks of {MINUTES} minutes for each figure, seed {options.seed}")
    print(f"{'AR(1)':>6}{'false alarms':>16}{'drift of 2 sd':>16}")
    for phi in (0.0, 0.5, 0.8):
        shares = [
            alarm_share(seed=options.seed, series=options.series, phi=phi, shape=shape)
            for shape in (still, rising)
        ]
        print(f"{phi:>6}{shares[0]:>16.1%}{shares[1]:>16.1%}")
    print(f"{'wanted':>6}{WANTED['false alarms']:>16}{WANTED['drift of 2 sd']:>16}")


if __name__ == "__main__":
    main()
