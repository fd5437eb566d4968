"""What counts as good: the limits of a request and of a level, in a scenario or on a command line. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from loadtest.scenario.parts import STRICT, ScenarioError, require, require_positive

GOODPUT: Final = {"ttft": "ttft_s", "tpot": "tpot_s", "e2el": "e2e_s"}
"""The words of `vllm bench serve --goodput`, which counts in milliseconds, and ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a good request is: `percentile` of requests must keep every limit that is set."""

    __pydantic_config__ = STRICT

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None
    percentile: float = 95.0
    confidence: float = 0.95
    """With which the signed level is proven."""
    failures_max_ratio: float = 0.01
    """The error budget: the share of a level's requests that may fail."""
    preemptions_max_per_100_requests: float | None = None
    """None: stages break at the first preemption, and a search judges none.

    By requests, not by time: it is the share of the work that is thrown away, whatever the server's pace.
    """

    buffer_ratio: float | None = None
    """What of the smallest limit is kept in reserve; None: 20%."""

    @property
    def violations_max_ratio(self) -> float:
        """Share of requests that may violate: 0.05 for p95. Rounded, or 1 - 0.9 would refuse one in ten."""
        return round(1 - self.percentile / 100, 9)

    def __post_init__(self) -> None:
        require_positive("limits.", self, "ttft_s", "tpot_s", "e2e_s")
        require(
            50.0 <= self.percentile < 100.0,
            f"limits.percentile must be from 50 to below 100, got {self.percentile}",
        )
        require(
            0.5 <= self.confidence < 1.0,
            f"limits.confidence must be from 0.5 to below 1, such as 0.95, got {self.confidence}",
        )
        require(
            0.0 <= self.failures_max_ratio < 1.0,
            f"limits.failures_max_ratio must be from 0 to below 1, got {self.failures_max_ratio}",
        )
        reserve = self.buffer_ratio
        require(
            reserve is None or 0.0 <= reserve < 1.0,
            f"limits.buffer_ratio must be from 0 to below 1, such as 0.2, got {reserve}",
        )
        most = self.preemptions_max_per_100_requests
        require(
            most is None or 0.0 <= most < float("inf"),
            f"limits.preemptions_max_per_100_requests must be at least 0, got {most}",
        )


def parse_goodput(pairs: Iterable[str]) -> dict[str, float]:
    """`ttft:2000 tpot:50 e2el:30000`, in milliseconds -> fields of Limits. Raises ScenarioError."""
    found: dict[str, float] = {}
    for pair in pairs:
        name, colon, limit = pair.partition(":")
        require(
            name in GOODPUT and bool(colon),
            f"goodput: {pair!r} is no limit: give ttft:MS, tpot:MS or e2el:MS, such as ttft:2000",
        )
        require(GOODPUT[name] not in found, f"goodput: {name} is given twice")
        found[GOODPUT[name]] = _milliseconds(pair, limit) / 1000
    return found


def _milliseconds(pair: str, text: str) -> float:
    try:
        limit_ms = float(text)
    except ValueError as error:
        raise ScenarioError(f"goodput: {pair!r} has no number of milliseconds after the colon") from error
    require(0 < limit_ms < float("inf"), f"goodput: {pair!r} must be above 0 milliseconds")
    return limit_ms


def with_goodput(body: Mapping[str, Any]) -> dict[str, Any]:
    """`limits` of a scenario file, its `goodput: ttft:2000 tpot:50` as the fields that it means."""
    whole = dict(body)
    goodput = whole.pop("goodput", None)
    if goodput is None:
        return whole
    require(isinstance(goodput, str), "limits.goodput is text, such as: ttft:2000 tpot:50 e2el:30000")
    for name, limit_s in parse_goodput(goodput.split()).items():
        require(name not in whole, f"limits give {name} twice: once by name and once in goodput")
        whole[name] = limit_s
    return whole


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitsAsked:
    """What a command line says of the limits; what it leaves out stays as the scenario says."""

    goodput: tuple[str, ...] = ()
    percentile: float | None = None
    confidence: float | None = None
    error_budget: float | None = None
    max_preemptions: float | None = None
    """In 100 requests."""

    def over(self, limits: Limits) -> Limits:
        """The limits that are in force. Raises ScenarioError."""
        return replace(limits, **self.fields())

    def fields(self) -> dict[str, Any]:
        """Those fields of Limits that were said. Raises ScenarioError."""
        said = {
            "percentile": self.percentile,
            "confidence": self.confidence,
            "failures_max_ratio": self.error_budget,
            "preemptions_max_per_100_requests": self.max_preemptions,
            **parse_goodput(self.goodput),
        }
        return {name: value for name, value in said.items() if value is not None}


def limits_text(limits: Limits) -> str:
    """One line, in the words that a command line takes."""
    set_ms = {word: getattr(limits, name) for word, name in GOODPUT.items()}
    goodput = " ".join(f"{word}:{limit * 1000:g}" for word, limit in set_ms.items() if limit is not None)
    most = limits.preemptions_max_per_100_requests
    preempted = "" if most is None else f", at most {most:g} preemptions in 100 requests"
    return (
        f"{goodput or 'no latency limit'} (ms) for {limits.percentile:g}% of requests at "
        f"{limits.confidence:.4g} confidence, at most {limits.failures_max_ratio:.2%} failed{preempted}"
    )
