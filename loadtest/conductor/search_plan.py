"""Scenario + prediction -> where a search begins, how far it may go, and what it will certify. Pure."""

from __future__ import annotations

from typing import Final

from estimator.capacity import Prediction
from loadtest.conductor.search import SearchPlan
from loadtest.reporter.buffer import safe_limit
from loadtest.scenario import Scenario, ScenarioError

USERS_PER_START: Final = 4
"""So far above the first level a search goes, unless it is told how far."""


def plan_search(scenario: Scenario, prediction: Prediction | None, users_cap: int) -> SearchPlan:
    """Raises ScenarioError when nobody says where to begin."""
    asked = scenario.search
    assert asked is not None
    n_kv = None if prediction is None else prediction.n_kv
    n_slots = None if prediction is None else prediction.n_slots
    known = [limit for limit in (n_kv, n_slots) if limit is not None]
    start = asked.start_users or min(known, default=None)
    if start is None:
        raise ScenarioError(
            "a search begins at the prediction, but the server's /metrics shows no KV cache of one group; "
            "name --model-config and --gpu, or give search.start_users"
        )
    start = max(start, 1)
    users_max = min(asked.users_max or USERS_PER_START * start, users_cap)

    def safe_users(n_max: int) -> int:
        return safe_limit(n_kv, n_slots, n_max, buffer_ratio=scenario.limits.buffer_ratio)

    return SearchPlan(
        start_users=min(start, users_max),
        users_max=users_max,
        q=scenario.limits.violations_max_ratio,
        safe_users=safe_users,
        confidence=scenario.limits.confidence,
        limits=scenario.limits,
        budget_s=asked.max_minutes * 60,
    )
