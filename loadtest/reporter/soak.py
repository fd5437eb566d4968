"""A soak's rows -> does the server hold this load for good? A verdict's four words over its drift. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from estimator.errors import EXIT_UNREACHABLE
from loadtest.reporter.drift import DriftReport, drift_of
from loadtest.reporter.drift_quantities import IDLE
from loadtest.reporter.drift_text import hours_missing, in_words, sentence
from loadtest.reporter.innocence import counting
from loadtest.reporter.observation import Observation
from loadtest.reporter.saturation import observe
from loadtest.reporter.verdict import EXIT_CODES, EXIT_SERVER_DIED, Status
from loadtest.results import RunRows
from loadtest.run_folder import Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class SoakVerdict:
    """Whether `users` parallel requests can be held for good, and what that stands on."""

    status: Status
    reason: str
    exit_code: int
    users: int
    hours_planned: float
    """Dips included; `drift.hours` is what was held."""
    drift: DriftReport
    observation: Observation
    """Its stages are the spells of load; dips are none."""


def judge_soak(rows: RunRows, manifest: Manifest, slots: int | None) -> SoakVerdict:
    """PASS only where the plan was held to its end and every trend that must be seen was."""
    drift, observation = drift_of(rows), observe(rows, manifest, slots)
    status, reason = _status(drift, observation, is_complete=manifest.state == "complete")
    return SoakVerdict(
        status=status,
        reason=reason,
        exit_code=observation.given_up_with
        or (EXIT_SERVER_DIED if _ended_by_server(drift, observation) else EXIT_CODES[status]),
        users=max((stage.users for stage in manifest.stages), default=0),
        hours_planned=sum(stage.hold_s for stage in manifest.stages) / 3600,
        drift=drift,
        observation=observation,
    )


def _ended_by_server(drift: DriftReport, observation: Observation) -> bool:
    gave_up = observation.given_up_with == EXIT_UNREACHABLE
    return gave_up or observation.server_died or bool(drift.restarts)


def _status(drift: DriftReport, observation: Observation, *, is_complete: bool) -> tuple[Status, str]:
    wall = observation.wall
    if _ended_by_server(drift, observation):
        restarts = [f"{where} restarted after {in_words(at_h)}" for at_h, where in drift.restarts]
        return "FAIL", "; ".join(
            [*restarts, *drifting(drift)] if restarts else [wall.evidence, *drifting(drift)]
        )
    if wall.name in ("client", "invalid") and not leaks(drift):
        return "VOID", wall.evidence
    if failed := [*drifting(drift), *_broken(observation)]:
        return "FAIL", "; ".join(failed)
    if doubts := _doubts(drift, observation, is_complete=is_complete):
        return "INCONCLUSIVE", "; ".join(doubts)
    return "PASS", "; ".join(
        [f"nothing drifts over {in_words(drift.hours)} at full load", *_unjudged(observation)]
    )


def leaks(drift: DriftReport) -> bool:
    """KV cache that is held for nobody: no client can do that to a server, however slow or alone it is."""
    return any(one.quantity is IDLE and one.status == "drifts" for one in drift.quantities)


def drifting(drift: DriftReport) -> list[str]:
    return [sentence(one, drift.horizon_h) for one in drift.quantities if one.status == "drifts"]


def _broken(observation: Observation) -> list[str]:
    """Spells of load that broke the limits, or did not hold otherwise; the first says how."""
    judged = counting(observation.stages)
    broken = [stage for stage in judged if not stage.held]
    if not broken:
        return []
    return [f"{len(broken)} of {len(judged)} spells did not hold: {'; '.join(broken[0].faults)}"]


def _unjudged(observation: Observation) -> list[str]:
    """Spells in which the load generator was at fault say nothing of the server; all of them: a void run."""
    stages = observation.stages
    unjudged = [stage for stage in stages if stage.client.faults]
    if not unjudged:
        return []
    why = "; ".join(unjudged[0].client.faults)
    return [f"{len(unjudged)} of {len(stages)} spells were not judged, for the load generator: {why}"]


def _doubts(drift: DriftReport, observation: Observation, *, is_complete: bool) -> list[str]:
    doubts = [] if is_complete else ["it was stopped before its end"]
    if missing_h := hours_missing(drift):
        held, more = in_words(drift.hours), in_words(missing_h)
        doubts.append(f"{held} at full load are too short for a trend: they need {more} more")
    elif drift.status in ("too short", "not seen"):
        doubts.append("too few minutes were seen for a trend")
    if any(one.quantity is IDLE and one.status == "not seen" for one in drift.quantities):
        doubts.append(
            "the KV cache was never seen at idle: its dips were too short, or others use the server"
        )
    return [*doubts, *(f"not known: {unknown}" for unknown in observation.unknowns)]
