"""Wald's sequential test of a share: looks after each request, and stops as soon as it knows. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from loadtest.sequential.evidence import Answer

ERROR_RATE: Final = 0.05
"""How often it may call a share of q / 2 bad, and one of 2 q good."""
LIMIT: Final = math.log((1.0 - ERROR_RATE) / ERROR_RATE)
"""2.944: both boundaries are this far from 0, as both kinds of error are allowed alike."""
TRUNCATION: Final = 30
"""At 30 / q effective requests a share near q, which it can never tell, has had its chance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RatioTest:
    """Is the share of violations rather half of q (good) or twice q (bad)?

    Correlated requests count for less, so the boundaries are `design_effect` times as far.
    """

    q: float
    design_effect: float

    def score(self, n: int, k: int) -> float:
        """Logarithm of how much likelier k violations in n requests are under 2 q than under q / 2."""
        low = self.q / 2
        # twice a q of 0.5 would be a share of 1, which a single clean request disproves
        high = min(2 * self.q, (1 + self.q) / 2)
        return k * math.log(high / low) + (n - k) * math.log((1 - high) / (1 - low))

    def answer(self, n: int, k: int) -> Answer:
        score = self.score(n, k)
        if score <= -LIMIT * self.design_effect:
            return "good"
        return "bad" if score >= LIMIT * self.design_effect else "unknown"

    @property
    def requests_max(self) -> int:
        """Where to stop asking; 2,400 for p95 and a design effect of 4."""
        return math.ceil(TRUNCATION / self.q * self.design_effect)
