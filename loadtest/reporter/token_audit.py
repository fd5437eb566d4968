"""Do the tokens that were asked for and those that were counted agree? From the usage of the answers. Pure.

A limit on concurrency holds for one workload. Where prompts or answers had other lengths than the scenario
says, or nobody knows their lengths, another workload was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from loadtest.columns import NULL, Columns, Ints
from loadtest.reporter.latency import NEEDED as NEEDED_BY_TPOT
from loadtest.reporter.latency import Latencies, exact_quantiles, succeeded, tpot_s
from loadtest.reporter.observation import Window
from loadtest.reporter.question import Need, Question, need_of, started, together
from loadtest.scenario import Scenario

NEEDED: Final = (
    *("outcome", "planned_input_tokens", "planned_output_tokens"),
    *("input_tokens", "output_tokens", "chunks", "first_chunk_tokens"),
)
UNTOLD_RATIO: Final = 0.01
OUTPUT_DIFFERS_RATIO: Final = 0.10
INPUT_DIFFERS_RATIO: Final = 0.02
IMPOSSIBLE_RATIO: Final = 0.01
TPOT_LOW_RATIO: Final = 0.01
"""From here on a reader is told by how much TPOT may be too small."""
PACE_CHANGES: Final = 1.5
"""A step that takes so many times as long, or as short, in the second half of a stage is another server."""
PACED_MIN: Final = 20
"""Answers of each half below which their median says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenAudit:
    """Sums over good answers. `told` of `answers` carried a usage; the sums are of those."""

    answers: int = 0
    told: int = 0
    impossible: int = 0
    """More tokens than were asked for, or fewer than came."""
    planned_input_tokens: int = 0
    input_tokens: int = 0
    planned_output_tokens: int = 0
    output_tokens: int = 0
    bundled: int = 0
    """Answers with fewer events than tokens, whose first event was taken for one token."""
    bundled_chunks: int = 0
    bundled_tokens: int = 0

    def __add__(self, other: TokenAudit) -> TokenAudit:
        return TokenAudit(**{name: getattr(self, name) + getattr(other, name) for name in self.__slots__})


def audit_tokens(windows: Sequence[Window]) -> Question[TokenAudit]:
    """Over the good answers to requests that started in any of the windows."""
    audit = TokenAudit()
    need = need_of(NEEDED, windows)
    while (part := (yield need)) is not None:
        for rows in started(part, windows):
            audit += _audited(rows.only(NEEDED).take(succeeded(rows)))
    return audit


def _audited(good: Columns) -> TokenAudit:
    told = good.take((good["output_tokens"] != NULL) & (good["input_tokens"] != NULL))
    # the last event may carry a finish reason and an empty text: one more than there are tokens
    impossible = (told["output_tokens"] > told["planned_output_tokens"]) | (
        told["chunks"] > told["output_tokens"] + 1
    )
    bundled = told.take(
        (told["chunks"] > 0) & (told["chunks"] < told["output_tokens"]) & (told["first_chunk_tokens"] == 1)
    )
    return TokenAudit(
        answers=good.rows,
        told=told.rows,
        impossible=int(impossible.sum()),
        planned_input_tokens=_sum(told["planned_input_tokens"]),
        input_tokens=_sum(told["input_tokens"]),
        planned_output_tokens=_sum(told["planned_output_tokens"]),
        output_tokens=_sum(told["output_tokens"]),
        bundled=bundled.rows,
        bundled_chunks=_sum(bundled["chunks"]),
        bundled_tokens=_sum(bundled["output_tokens"]),
    )


def _sum(values: Ints) -> int:
    return int(values.sum())


def usage_lies(audit: TokenAudit) -> str | None:
    """One sentence when the server's own count of tokens cannot be true."""
    if audit.impossible <= IMPOSSIBLE_RATIO * audit.told:
        return None
    return (
        f"the server's usage cannot be true: {audit.impossible} of {audit.told} answers counted more tokens "
        "than were asked for, or fewer than came"
    )


def token_doubts_of_levels(audits: Iterable[tuple[str, TokenAudit]], scenario: Scenario) -> tuple[str, ...]:
    """Level by level, with its label: one whose lengths were other ones is not made good by the next.

    Each doubt once.
    """
    found: dict[str, str] = {}
    for label, audit in audits:
        for kind, doubt in token_doubts(audit, scenario).items():
            found.setdefault(kind, f"{doubt} at {label}")
    return tuple(found.values())


def token_doubts(audit: TokenAudit, scenario: Scenario) -> dict[str, str]:
    """What must be known of the tokens before the load can be called the scenario's, by what it is about."""
    may_be_less = _upper_bounds(scenario)
    doubts = {}
    untold = audit.answers - audit.told
    if untold > UNTOLD_RATIO * audit.answers:
        doubts["usage"] = (
            f"how many tokens {untold} of {audit.answers} answers had (the server told no usage)"
        )
    for what, planned, counted, slack in (
        ("prompts", audit.planned_input_tokens, audit.input_tokens, INPUT_DIFFERS_RATIO),
        ("answers", audit.planned_output_tokens, audit.output_tokens, OUTPUT_DIFFERS_RATIO),
    ):
        if counted > (1 + slack) * planned or (counted < (1 - slack) * planned and what not in may_be_less):
            doubts[what] = (
                f"how the planned load would do ({what} had {counted / planned:.0%} of the planned tokens)"
            )
    return doubts


def token_notes(audit: TokenAudit) -> tuple[str, ...]:
    """By how much TPOT may be too small where events held several tokens, and the first was taken for one."""
    if audit.bundled_chunks == audit.bundled:  # none, or each in one event, which has no TPOT
        return ()
    each = audit.bundled_tokens / audit.bundled_chunks
    most = (audit.bundled_tokens - audit.bundled) / (audit.bundled_tokens - audit.bundled * each) - 1
    if most < TPOT_LOW_RATIO:
        return ()
    return (
        f"TPOT takes the first event of an answer for one token, as vLLM sends it. {audit.bundled} of "
        f"{audit.told} answers came with {each:.1f} tokens an event: had their first event as many, their "
        f"TPOT would be {most:.0%} higher.",
    )


def _upper_bounds(scenario: Scenario) -> frozenset[str]:
    """Which planned lengths may fall short: answers that end by themselves, and turns that repeat them."""
    if scenario.ignores_eos:
        return frozenset()
    repeats = scenario.session is not None and scenario.session.answers == "served"
    return frozenset({"answers", "prompts"} if repeats else {"answers"})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Half:
    """Of a window; it is cut where a window's settled part is."""

    settled_ns: int
    end_ns: int


def pace_doubt(window: Window) -> Question[str | None]:
    """When the server was clearly faster or slower in the second half of a window than in the first."""
    middle_ns = (window.settled_ns + window.end_ns) // 2
    found = yield from together(
        first=_pace_s(_Half(settled_ns=window.settled_ns, end_ns=middle_ns)),
        second=_pace_s(_Half(settled_ns=middle_ns, end_ns=window.end_ns)),
    )
    if None in found.values():
        return None
    first_s, second_s = found["first"], found["second"]
    if max(first_s, second_s) < PACE_CHANGES * min(first_s, second_s):
        return None
    return (
        f"which pace of the server is the usual one ({first_s * 1000:.1f} ms a token in the first half of "
        f"the stage of {window.users} users, {second_s * 1000:.1f} ms in the second)"
    )


def _pace_s(half: _Half) -> Question[float | None]:
    """The median TPOT of its good answers; None of too few."""
    need = need_of(NEEDED_BY_TPOT, [half])

    def of_part(part: Columns) -> Latencies:
        for rows in started(part, [half]):
            yield {"pace": tpot_s(rows.only(NEEDED_BY_TPOT).take(succeeded(rows)))}

    found = yield from together(count=_count(need, of_part), median=exact_quantiles(need, of_part, (0.5,)))
    return found["median"]["pace"][0] if found["count"] >= PACED_MIN else None


def _count(need: Need, latencies: Callable[[Columns], Latencies]) -> Question[int]:
    count = 0
    while (rows := (yield need)) is not None:
        count += sum(
            int(np.count_nonzero(~np.isnan(values))) for each in latencies(rows) for values in each.values()
        )
    return count
