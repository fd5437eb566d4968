"""Statistics that stop early and never pretend: bounds, sequential tests, settling, trends. Ground, pure."""

from loadtest.sequential.binomial import (
    binomial_at_least,
    binomial_at_most,
    lower_bound,
    requests_needed,
    upper_bound,
)
from loadtest.sequential.certify import Certificate, weigh_once
from loadtest.sequential.evidence import DESIGN_EFFECT_DEFAULT, Answer, Evidence, design_effect, weigh
from loadtest.sequential.percentile import PercentileInterval, percentile_interval
from loadtest.sequential.ratio_test import RatioTest
from loadtest.sequential.settle import settled_from
from loadtest.sequential.trend import Slope, TrendTest, mann_kendall, theil_sen

__all__ = [
    "DESIGN_EFFECT_DEFAULT",
    "Answer",
    "Certificate",
    "Evidence",
    "PercentileInterval",
    "RatioTest",
    "Slope",
    "TrendTest",
    "binomial_at_least",
    "binomial_at_most",
    "design_effect",
    "lower_bound",
    "mann_kendall",
    "percentile_interval",
    "requests_needed",
    "settled_from",
    "theil_sen",
    "upper_bound",
    "weigh",
    "weigh_once",
]
