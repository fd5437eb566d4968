"""Are the engines of a server loaded alike? The fullest of them decides how many requests fit. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from loadtest.records import Sample

FULL_RATIO: Final = 0.5
"""Below it an engine has room, and differences do not matter."""
MEAN_OF_FULLEST_MAX: Final = 0.75


@dataclass(frozen=True, slots=True, kw_only=True)
class Uneven:
    """KV cache in use, medians over a stage: of the fullest engine, and the mean over all."""

    engines: int
    fullest_ratio: float
    mean_ratio: float

    def __str__(self) -> str:
        return (
            f"unevenly: of {self.engines} engines the fullest held {self.fullest_ratio:.0%} of its KV cache, "
            f"the mean was {self.mean_ratio:.0%}"
        )


def uneven(looks: Sequence[Sample]) -> Uneven | None:
    """None where the engines were alike, where all had room, or where there is one."""
    seen = [look.signals for look in looks if look.signals.get("engines", 1) > 1]
    seen = [signals for signals in seen if {"kv_usage_ratio", "kv_usage_mean_ratio"} <= signals.keys()]
    if not seen:
        return None
    fullest = median(signals["kv_usage_ratio"] for signals in seen)
    mean = median(signals["kv_usage_mean_ratio"] for signals in seen)
    if fullest < FULL_RATIO or mean > MEAN_OF_FULLEST_MAX * fullest:
        return None
    return Uneven(engines=round(seen[-1]["engines"]), fullest_ratio=fullest, mean_ratio=mean)
