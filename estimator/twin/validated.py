"""How far the twin was off beside a real vLLM: the measured errors as data, and the error bar they make.

The figures are those of the table in docs/validation/vllm-cpu.md; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from estimator.spec import Interval

Quantity = Literal["output_tokens_per_s", "ttft_p50_s", "ttft_p95_s", "tpot_p50_s"]
SOURCE: Final = "docs/validation/vllm-cpu.md, runs of 2026-11-21 and 22"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One figure of one load, both in the same unit."""

    foretold: float
    seen: float


def _pairs(*figures: tuple[float, float]) -> tuple[Pair, ...]:
    return tuple(Pair(foretold=foretold, seen=seen) for foretold, seen in figures)


MEASURED: Final[Mapping[Quantity, tuple[Pair, ...]]] = {
    "output_tokens_per_s": _pairs(
        *((909, 906), (1293, 1166), (1274, 1278), (1190, 1058), (499, 519)),
        *((918, 905), (120, 99), (1259, 1174), (634, 556)),
        *((922, 871), (1363, 1093), (1280, 1095), (1237, 1006), (499, 521), (957, 919)),
        *((120, 120), (1293, 1392), (640, 616)),
    ),
    "ttft_p50_s": _pairs(
        *((0.067, 0.053), (0.113, 0.100), (3.117, 3.250), (4.620, 4.708), (0.043, 0.038)),
        *((2.251, 2.280), (2.691, 3.237), (0.866, 0.915), (4.634, 4.250)),
        *((0.068, 0.053), (0.100, 0.104), (3.047, 3.456), (4.511, 4.760), (0.044, 0.039)),
        *((2.167, 2.217), (2.692, 2.650), (0.229, 0.278), (4.410, 4.183)),
    ),
    "ttft_p95_s": _pairs(
        *((0.084, 0.077), (0.449, 0.551), (7.267, 7.056), (6.004, 6.312), (0.055, 0.058)),
        *((2.251, 2.673), (2.722, 3.669), (1.638, 1.690), (5.604, 6.463)),
        *((0.086, 0.074), (0.519, 0.424), (6.905, 9.507), (5.792, 6.301), (0.056, 0.061)),
        *((2.167, 2.666), (2.723, 3.104), (1.625, 1.627), (5.258, 5.718)),
    ),
    "tpot_p50_s": _pairs(
        *((0.0174, 0.0175), (0.0294, 0.0326), (0.0321, 0.0323), (0.0316, 0.0379), (0.0136, 0.0141)),
        *((0.0173, 0.0176), (0.0328, 0.0389), (0.0304, 0.0330), (0.0227, 0.0253)),
        *((0.0171, 0.0173), (0.0283, 0.0363), (0.0310, 0.0369), (0.0307, 0.0388), (0.0133, 0.0152)),
        *((0.0166, 0.0170), (0.0327, 0.0320), (0.0293, 0.0273), (0.0217, 0.0228)),
    ),
}
"""The nine loads in the order of the tables, the later run first: what one run missed may be missed again."""


def seen_over_foretold(quantity: Quantity) -> Interval:
    """The least and the most that was seen for 1 that was foretold; it encloses 1."""
    ratios = [pair.seen / pair.foretold for pair in MEASURED[quantity]]
    return Interval(low=min(1.0, *ratios), likely=1.0, high=max(1.0, *ratios))
