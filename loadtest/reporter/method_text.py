"""Verdict -> the sentences that say how it was reached and what it stands on. Words only."""

from __future__ import annotations

from loadtest.reporter.verdict import Verdict
from loadtest.scenario import Limits

COHORT = (
    "A request counts for the stage it started in and is waited for to its end. Failed requests count "
    "against the limits and never enter a latency. "
)


def proof(verdict: Verdict) -> str:
    """Empty where there was no request to prove anything with."""
    evidence = verdict.evidence
    if evidence.share_at_most is None:
        return ""
    at = f"at {verdict.n_safe} to {verdict.n_max} users"
    if verdict.observation.search is not None:
        at = f"sent at {verdict.n_safe} users once the limit was found"
    return (
        f"{evidence.k} of the {evidence.n} requests {at} broke a "
        f"limit or failed: with {evidence.confidence:.0%} confidence at most {evidence.share_at_most:.1%} do."
    )


def method(verdict: Verdict) -> list[str]:
    said = _staged(verdict) if verdict.observation.search is None else _searched(verdict)
    return [*said, *verdict.observation.notes]


def _staged(verdict: Verdict) -> list[str]:
    evidence, observation = verdict.evidence, verdict.observation
    return [
        f"A stage held when its users were really in flight, {_preempted(observation.limits)}, no requests "
        "were parked in front of the engine, no queue stood (median waiting below 1, or below what comes "
        "within two engine steps), "
        f"{observation.percentile:g}% of its requests kept every limit and at most "
        f"{observation.limits.failures_max_ratio * 100:g}% failed. N_max is the highest stage that held "
        "with all below it. A stage at which the load generator was late or busy is void: it counts for "
        "nothing.",
        f"The proof pools the stages that held at N_safe users or more: {evidence.k} of {evidence.n} "
        f"requests broke a limit or failed; with a design effect of {evidence.design_effect:.1f} (requests "
        f"of one run resemble each other) an exact binomial test at {evidence.confidence:.0%} says "
        f"{evidence.answer}.",
        f"{COHORT}Settling seconds are not judged, but where no preemption is allowed one in them is.",
    ]


def _preempted(limits: Limits) -> str:
    most = limits.preemptions_max_per_100_requests
    return "nothing was preempted" if most is None else f"at most {most:g} in 100 requests were preempted"


def _searched(verdict: Verdict) -> list[str]:
    evidence = verdict.evidence
    return [
        "The search began at the prediction, went on in steps of a quarter until one level held and one did "
        "not, and halved what lay between them to 5% or one user. A level holds when a sequential test says "
        f"that rather {evidence.q / 2:.1%} than {2 * evidence.q:.0%} of its requests broke a limit or "
        "failed; a request past its limit counts at once. N_max is the highest level that held below all "
        "that did not.",
        f"Then N_safe was certified with fresh requests: {evidence.k} of {evidence.n} broke a limit or "
        f"failed; with a design effect of {evidence.design_effect:.1f} (requests of one run resemble each "
        f"other) an exact binomial test at planned looks, {evidence.confidence:.0%} together, says "
        f"{evidence.answer}.",
        f"{COHORT}Nothing is judged before its level has settled. Preemptions and queues are shown; "
        "it is the limits that judge.",
    ]
