"""Prediction + Observation -> Verdict: the one signed number and what it stands on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from estimator.capacity import Prediction
from estimator.errors import EXIT_VOID
from loadtest.reporter.buffer import buffer_of, safe_limit
from loadtest.reporter.innocence import counting
from loadtest.reporter.observation import Observation, StageObservation, Wall
from loadtest.reporter.searched import certified, conclusion
from loadtest.sequential import Evidence, weigh_once

Status = Literal["PASS", "FAIL", "INCONCLUSIVE", "VOID"]
EXIT_CODES: Final[dict[Status, int]] = {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 4, "VOID": EXIT_VOID}
EXIT_SERVER_DIED: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The signed answer and everything it stands on. Limits are concurrent requests; None is not known."""

    status: Status
    reason: str
    exit_code: int
    n_kv: int | None
    n_slots: int | None
    n_slo: int | None
    n_max: int
    n_safe: int
    gap_ratio: float | None
    """Observed n_max against the predicted limit, 0.1 is 10% above; None without a prediction."""
    is_lower_bound: bool
    """Every stage held: the limit itself was not reached."""
    evidence: Evidence
    prediction: Prediction | None
    observation: Observation

    @property
    def buffer_ratio(self) -> float:
        return buffer_of(self.observation.limits.buffer_ratio)


def judge(prediction: Prediction | None, observation: Observation) -> Verdict:
    """N_safe = floor((1 - buffer) x min(the limits)); PASS needs it proven, not only seen."""
    n_kv = None if prediction is None else prediction.n_kv
    n_slots = None if prediction is None else prediction.n_slots
    found = observation.search
    if found is None:
        n_safe = safe_limit(
            n_kv, n_slots, observation.n_slo, observation.n_max, buffer_ratio=observation.limits.buffer_ratio
        )
        evidence = _evidence(observation, n_safe)
    else:  # the level that was certified
        n_safe = found.n_safe
        evidence = certified(
            found, q=observation.limits.violations_max_ratio, confidence=observation.limits.confidence
        )
    status, reason = _status(observation, n_safe, evidence)
    predicted = None if n_kv is None else min(n_kv, n_kv if n_slots is None else n_slots)
    return Verdict(
        status=status,
        reason=reason,
        exit_code=observation.given_up_with
        or (EXIT_SERVER_DIED if observation.server_died else EXIT_CODES[status]),
        n_kv=n_kv,
        n_slots=n_slots,
        n_slo=observation.n_slo,
        n_max=observation.n_max,
        n_safe=n_safe,
        gap_ratio=observation.n_max / predicted - 1 if predicted else None,
        is_lower_bound=observation.breaks is None and bool(observation.stages),
        evidence=evidence,
        prediction=prediction,
        observation=observation,
    )


def _evidence(observation: Observation, n_safe: int) -> Evidence:
    """Requests of all stages that held at n_safe users or more: a higher load only makes it harder."""
    proving: list[StageObservation] = [
        stage for stage in counting(observation.stages) if n_safe <= stage.users <= observation.n_max
    ]
    violations = b"".join(stage.violations for stage in proving)
    return weigh_once(
        violations, q=observation.limits.violations_max_ratio, confidence=observation.limits.confidence
    )


def _status(observation: Observation, n_safe: int, evidence: Evidence) -> tuple[Status, str]:
    wall: Wall = observation.wall
    if wall.name in ("client", "invalid"):
        return "VOID", wall.evidence
    if observation.search is not None:
        return conclusion(observation.search, observation.unknowns, evidence)
    if not observation.stages:
        return "INCONCLUSIVE", "no stage lasted long enough to be judged"
    broken = observation.first_broken
    if observation.n_max == 0 and broken is not None:
        return "FAIL", f"not even the lowest stage, {broken.users} users, held: {'; '.join(broken.faults)}"
    if n_safe == 0:
        return "FAIL", "the buffer leaves no whole request of the smallest limit"
    if observation.unknowns:
        return "INCONCLUSIVE", f"not known: {'; '.join(observation.unknowns)}"
    share = f"at most {evidence.q * 100:g}% of requests violate"
    if evidence.answer == "good":
        return "PASS", f"{share}, proven at {evidence.confidence:.0%} confidence"
    if evidence.answer == "bad":
        return "FAIL", f"more than {evidence.q * 100:g}% of requests violate at {n_safe} users or more"
    return "INCONCLUSIVE", f"{evidence.more_needed} more clean requests are needed to prove that {share}"
