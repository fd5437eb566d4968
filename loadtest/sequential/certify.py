"""The signed test: few planned looks at fresh requests, so that looking again cannot win the signature. Pure.

A test at 95% that is repeated until it passes passes too often. The 5% of doubt is therefore spent over the
looks, most of it at the first: well below the limit nothing violates, and one look is enough.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from loadtest.sequential.binomial import requests_needed
from loadtest.sequential.evidence import Evidence, weigh

SHARES: Final = (0.6, 0.1, 0.1)
"""How much of the doubt each look may spend; the second look is at twice, the third at four times the
requests of the first. The last fifth is for the design effect, which is only estimated."""
DESIGN_EFFECT_SIGNED: Final = 8.0
"""What a signature assumes at least: the most that was seen near the limit of batch servers."""


def weigh_once(violations: Sequence[int], *, q: float, confidence: float = 0.95) -> Evidence:
    """As `weigh`, for a signature by one look at requests whose number nobody planned: a run of stages.

    It spends what the first look of a certificate may: where violations come in clusters of 40 or 100, a test
    that spends all of it signs what it should not in 7 of 100 runs.
    """
    stricter = 1.0 - (1.0 - confidence) * SHARES[0]
    return replace(weigh(violations, q=q, confidence=stricter), confidence=confidence)


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """A plan of looks for "at most a share q violates" at `confidence`."""

    q: float
    confidence: float = 0.95
    design_effect_min: float = DESIGN_EFFECT_SIGNED
    requests_min: int = 0
    """The first look waits for as many at least, as for a few from each user."""

    def requests_at(self, look: int) -> int:
        """How many requests the look, counted from 0, takes: clean ones are just enough for the first."""
        needed = requests_needed(0, q=self.q, confidence=self._confidence(0))
        return max(math.ceil(needed * self.design_effect_min), self.requests_min) << look

    def look(self, number: int, violations: Sequence[int]) -> Evidence:
        """`violations` as for `weigh`, of all requests so far, requests_at(number) of them."""
        return weigh(
            violations,
            q=self.q,
            confidence=self._confidence(number),
            design_effect_min=self.design_effect_min,
        )

    @property
    def looks(self) -> int:
        return len(SHARES)

    def _confidence(self, look: int) -> float:
        return 1.0 - (1.0 - self.confidence) * SHARES[look]
