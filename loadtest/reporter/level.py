"""Everything a report asks of the requests of one level, from the same looks at them. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loadtest.records import Sample
from loadtest.reporter.client_health import client_health
from loadtest.reporter.cohort import Cohort, judge_cohort
from loadtest.reporter.observation import ClientHealth, Window
from loadtest.reporter.question import Question, together
from loadtest.reporter.signs import signs
from loadtest.reporter.token_audit import TokenAudit, audit_tokens, pace_doubt
from loadtest.scenario import Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """The answers. `signs` are fields of StageObservation; `pace_doubt` is None where there is none."""

    cohort: Cohort
    client: ClientHealth
    signs: Mapping[str, Any]
    audit: TokenAudit
    pace_doubt: str | None


def look_at_level(window: Window, samples: Sequence[Sample], limits: Limits) -> Question[Level]:
    engine = [sample for sample in samples if sample.source == "engine"]
    found = yield from together(
        cohort=judge_cohort(window, limits),
        client=client_health(samples, [window]),
        signs=signs(engine, window),
        audit=audit_tokens([window]),
        pace_doubt=pace_doubt(window),
    )
    return Level(**found)
