"""What a search found, as the report reads it: who broke which level, and what is signed. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from loadtest.reporter.innocence import parked_fault
from loadtest.reporter.observation import Observation, StageObservation
from loadtest.scenario import Limits
from loadtest.search_result import LevelVerdict, SearchResult
from loadtest.sequential import Answer, Evidence

ANSWERS: Final[dict[LevelVerdict, Answer]] = {"PASS": "good", "FAIL": "bad", "INCONCLUSIVE": "unknown"}


def faults_of_level(found: SearchResult, index: int) -> tuple[str, ...]:
    """Why a level did not hold, in the search's own words; empty where it did."""
    if index >= len(found.probes):
        return ("the load ended before it was known",)
    finding = found.probes[index].finding
    return () if finding.verdict == "PASS" else (finding.because,)


def level_that_broke(stages: Sequence[StageObservation], found: SearchResult) -> StageObservation | None:
    """The stage of the smallest level that does not hold; None where there is none, or it never settled."""
    return next((stage for stage in stages if stage.users == found.breaks and not stage.held), None)


def doubts_of_levels(stages: Sequence[StageObservation], limits: Limits) -> tuple[str, ...]:
    """A level proves nothing where its users were not really in flight, or a limit on it was not seen."""
    doubts = [
        f"whether {stage.users} users hold ({why})"
        for stage in stages
        if stage.held
        and (why := stage.shortfall or parked_fault(stage.client, stage.in_flight_mean, stage.requests_per_s))
    ]
    counts_preemptions = limits.preemptions_max_per_100_requests is not None
    if counts_preemptions and any(stage.preemptions is None for stage in stages):
        doubts.append("whether requests were preempted (the server shows no preemption counter)")
    return tuple(doubts)


def certified(found: SearchResult, *, q: float, confidence: float) -> Evidence:
    """What the fresh requests at the signed level say; no request where that was not tried."""
    finding = found.certificate
    if finding is None:
        return Evidence(
            n=0,
            k=0,
            q=q,
            confidence=confidence,
            design_effect=1.0,
            answer="unknown",
            share_at_most=None,
            more_needed=0,
        )
    return Evidence(
        n=finding.n,
        k=finding.k,
        q=q,
        confidence=confidence,
        design_effect=finding.design_effect,
        answer=ANSWERS[finding.verdict],
        share_at_most=finding.share_at_most,
        more_needed=finding.more_needed,
    )


def conclusion(found: SearchResult, unknowns: Sequence[str], evidence: Evidence) -> tuple[LevelVerdict, str]:
    """The verdict on a load that was not void, and its sentence."""
    if found.n_max and not found.n_safe:
        return "FAIL", "the buffer leaves no whole request of the smallest limit"
    if found.verdict != "PASS":
        return found.verdict, found.reason
    if unknowns:
        return "INCONCLUSIVE", f"not known: {'; '.join(unknowns)}"
    share = f"at most {evidence.q * 100:g}% of requests violate at {found.n_safe} users"
    return "PASS", f"{share}, proven with fresh requests at {evidence.confidence:.0%} confidence"


def bracket_text(observation: Observation, found: SearchResult) -> str:
    """What the search says of the limit, and what it cost."""
    held = f"{found.n_max} held" if found.n_max else "no level held"
    if found.breaks is None:
        beyond = "" if not found.n_max else " · no level tried is too high"
    else:
        failed = any(p.users == found.breaks and p.verdict == "FAIL" for p in found.probes)
        beyond = f" · {found.breaks} does not" if failed else f" · {found.breaks} could not be told"
    probes = f"{len(found.probes)} probe{'' if len(found.probes) == 1 else 's'}"
    odd = "" if found.is_monotone else "; a higher level held twice"
    wall = f"wall: {observation.wall.name}; {observation.wall.evidence}"
    return f"{held}{beyond}   ({probes} in {found.minutes:.1f} minutes; {wall}{odd})"
