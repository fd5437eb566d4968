"""One level of the search: the requests sent since it settled, and what they say about it. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from loadtest.scenario import Limits
from loadtest.search_result import Finding, LevelVerdict
from loadtest.sequential import Answer, Certificate, RatioTest, design_effect, weigh
from loadtest.violations import failure_fault, preemption_fault

VERDICTS: Final[dict[Answer, LevelVerdict]] = {"good": "PASS", "bad": "FAIL", "unknown": "INCONCLUSIVE"}
CLEAN, VIOLATES, PENDING, DROPPED = 0, 1, 2, 3
ROUNDS_HEARD: Final = 3
"""Requests from each user: those of one round share the state of one cache, however many they are."""
OVERWHELMING_ROUNDS: Final = 0.5
"""So many violations fail a level before its rounds are over: a cache full once hits less of a round."""


class Cohort:
    """The requests sent since the level settled, in the order of sending.

    Bad news is early: a request past its first-token limit is known to violate long before its neighbours are
    known to be clean. So a level passes only on the oldest requests, all of which are judged, and fails only
    if the bad ones are too many even if everyone still under way turns out clean.
    """

    def __init__(self) -> None:
        self._marks = bytearray()
        self._places: dict[str, int] = {}
        self._judged = 0
        self._dropped = 0
        self.violations = 0
        """Known so far, also of requests still under way."""
        self.failures = 0
        """Those of them that did not succeed."""
        self.preemptions: float | None = None
        """Since the level settled; None: the server does not show them."""

    def sent(self, request_id: str) -> None:
        self._places[request_id] = len(self._marks)
        self._marks.append(PENDING)

    def judged(self, request_id: str, violates: bool) -> None:
        """The first word on a request counts; one that was not `sent` here is not heard."""
        if self._mark(request_id, VIOLATES if violates else CLEAN):
            self.violations += violates

    def dropped(self, request_id: str) -> None:
        """We cut it short ourselves before it broke a limit: neither good nor bad, it was never here."""
        if self._mark(request_id, DROPPED):
            self._dropped += 1

    def failed(self, request_id: str) -> None:
        """Said once of a request that did not succeed, whenever it was judged."""
        self.failures += request_id in self._places

    def _mark(self, request_id: str, mark: int) -> bool:
        place = self._places.get(request_id)
        if place is None or self._marks[place] != PENDING:
            return False
        self._marks[place] = mark
        while self._judged < len(self._marks) and self._marks[self._judged] != PENDING:
            self._judged += 1
        return True

    @property
    def oldest(self) -> bytes:
        """1 or 0 for each request up to the oldest that is not judged yet."""
        return bytes(self._marks[: self._judged]).replace(bytes([DROPPED]), b"")

    @property
    def sent_count(self) -> int:
        """Without those that were dropped."""
        return len(self._marks) - self._dropped


def find(cohort: Cohort, *, users: int, q: float, confidence: float) -> Finding | None:
    """The sequential test of a level; None: go on. At its truncation the exact test has the last word."""
    oldest = cohort.oldest
    test = RatioTest(q=q, design_effect=design_effect(oldest))
    requests_min = ROUNDS_HEARD * users
    failed = _failed(cohort, test)
    if failed is not None and (failed.n >= requests_min or failed.k >= OVERWHELMING_ROUNDS * users):
        return failed
    n, k = len(oldest), sum(oldest)
    if n >= requests_min and test.answer(n, k) == "good":
        return Finding(
            verdict="PASS",
            n=n,
            k=k,
            design_effect=test.design_effect,
            because=f"{k} of {n} requests violate: rather {q / 2:.2%} than {2 * q:.0%}",
        )
    if n < max(test.requests_max, requests_min):
        return None
    evidence = weigh(oldest, q=q, confidence=confidence)
    return Finding(
        verdict=VERDICTS[evidence.answer],
        n=n,
        k=k,
        design_effect=evidence.design_effect,
        because=f"{k} of {n} requests violate: too near {q:.0%} to wait longer, so the exact test decides",
        share_at_most=evidence.share_at_most,
        more_needed=evidence.more_needed,
    )


def find_signed(cohort: Cohort, certificate: Certificate) -> Finding | None:
    """The planned looks of a certification; None: go on."""
    oldest = cohort.oldest
    failed = _failed(cohort, RatioTest(q=certificate.q, design_effect=design_effect(oldest)))
    if failed is not None:
        return failed
    for number in range(certificate.looks):
        seen = oldest[: certificate.requests_at(number)]
        if len(seen) < certificate.requests_at(number):
            return None
        evidence = certificate.look(number, seen)
        if evidence.answer != "unknown" or number == certificate.looks - 1:
            break
    looked = f"look {number + 1} of {certificate.looks}: {evidence.k} of {evidence.n} requests violate"
    bound = f"at most {evidence.share_at_most:.2%} at {evidence.confidence:.1%} confidence"
    return Finding(
        verdict=VERDICTS[evidence.answer],
        n=evidence.n,
        k=evidence.k,
        design_effect=evidence.design_effect,
        because=f"{looked}, {bound}",
        share_at_most=evidence.share_at_most,
        more_needed=evidence.more_needed,
    )


def within(finding: Finding, cohort: Cohort, limits: Limits) -> Finding:
    """The same, unless a level that passes failed or preempted more requests than it may."""
    if finding.verdict != "PASS":
        return finding
    sent, fault = cohort.sent_count, failure_fault(cohort.failures, cohort.sent_count, limits)
    if limits.preemptions_max_per_100_requests is not None and cohort.preemptions is not None:
        fault = fault or preemption_fault(cohort.preemptions, sent, limits)
    return replace(finding, verdict="FAIL", because=fault) if fault else finding


def cut_short(cohort: Cohort, *, q: float, confidence: float, because: str) -> Finding:
    """What a level says that had to end before it was known."""
    evidence = weigh(cohort.oldest, q=q, confidence=confidence)
    return Finding(
        verdict="INCONCLUSIVE",
        n=evidence.n,
        k=evidence.k,
        design_effect=evidence.design_effect,
        because=because,
        share_at_most=evidence.share_at_most,
        more_needed=max(evidence.more_needed, 1),
    )


def _failed(cohort: Cohort, test: RatioTest) -> Finding | None:
    n, k = cohort.sent_count, cohort.violations
    if test.answer(n, k) != "bad":
        return None
    rather = f"rather {2 * test.q:.0%} than {test.q / 2:.2%}, even if all under way end well"
    return Finding(
        verdict="FAIL",
        n=n,
        k=k,
        design_effect=test.design_effect,
        because=f"{k} of {n} requests already violate: {rather}",
    )
