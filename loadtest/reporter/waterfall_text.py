"""Waterfall -> the Gap line and the rows of a table. Words only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from decimal import Decimal
from typing import Any, Final

from loadtest.reporter.verdict import Verdict
from loadtest.reporter.waterfall import Term, Waterfall, waterfall_of
from loadtest.reporter.waterfall_steps import TermName

TITLES: Final[Mapping[TermName, str]] = {
    "unit": "Unit and rounding",
    "memory": "Weights, activations, graphs",
    "pool": "The server's own pool",
    "stored": "What a token stores",
    "blocks": "Blocks and grouping",
    "longest": "Longest request",
    "life": "Lengths over a life",
    "prefix": "Prefix sharing",
    "held": "Blocks really held",
    "slots": "Slots",
    "preemption": "Preemption",
    "scheduler": "Scheduler, prefill",
    "latency": "Latency limits",
    "front_end": "Front end, network",
    "admission": "Refused at the door",
    "client": "Client",
    "not_tried": "Between two loads",
    "unexplained": "Unexplained",
}
SHORT: Final[Mapping[TermName, str]] = {
    "life": "requests rarely at their longest together",
    "prefix": "shared prefixes",
    "held": "held otherwise than planned",
    "slots": "max_num_seqs",
    "preemption": "preemption",
    "scheduler": "prompts waiting for compute",
    "latency": "a latency limit",
    "front_end": "waiting in front of the engine",
    "admission": "requests refused",
    "client": "the load generator",
    "not_tried": "between two loads",
    "unexplained": "unexplained",
}
"""Terms between the guarantee and the observed limit, as the Gap line names them."""
START: Final = {"textbook": "Textbook", "pool": "The server's own pool"}
SHOWN_TERMS: Final = 3
CLOSE_RATIO: Final = 0.05


def signed(requests: Decimal) -> str:
    """With a sign and one decimal: +9.9, 0.0, -3.0."""
    return f"{requests:+.1f}" if requests else "0.0"


def explain_gap(verdict: Verdict) -> str:
    """From the guarantee to the observed limit by the largest terms; empty where the two are close."""
    gap, prediction = verdict.gap_ratio, verdict.prediction
    if gap is None or prediction is None:
        return ""
    if verdict.is_lower_bound:
        return "the highest stage held; a higher one would say more"
    if abs(gap) <= CLOSE_RATIO:
        return ""
    waterfall = waterfall_of(verdict)
    if waterfall is None:
        return ""
    terms = [term for term in waterfall.terms if term.name in SHORT and term.requests]
    largest = sorted(terms, key=lambda term: -abs(term.requests))[:SHOWN_TERMS]
    shown = [f"{signed(term.requests)} {SHORT[term.name]}" for term in terms if term in largest]
    rest = sum((term.requests for term in terms if term not in largest), Decimal(0))
    others = [f"{signed(rest)} other"] if rest else []
    return f"from {prediction.n_guaranteed} to {verdict.n_max}: {', '.join([*shown, *others])}"


def waterfall_rows(waterfall: Waterfall) -> list[tuple[str, str, str]]:
    """Title, requests and explanation, from the start to the observed limit; the middle column adds up."""
    start = (START[waterfall.start_name], f"{waterfall.start:.1f}", f"{waterfall.start_figure}.")
    at_least = "at least " if waterfall.is_lower_bound else ""
    end = ("Observed", f"{waterfall.observed}.0", f"N_max: {at_least}{waterfall.observed} held.")
    return [start, *(_row(term) for term in waterfall.terms), end]


def _row(term: Term) -> tuple[str, str, str]:
    return TITLES[term.name], signed(term.requests), f"{_capital(term.figure)}: {term.sentence}."


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def waterfall_dict(waterfall: Waterfall | None) -> dict[str, Any] | None:
    """The same for a machine: requests as numbers of one decimal."""
    if waterfall is None:
        return None
    body = asdict(waterfall) | {"start": float(waterfall.start)}
    body["terms"] = [asdict(term) | {"requests": float(term.requests)} for term in waterfall.terms]
    return body
