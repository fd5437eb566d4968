"""The load's shape for Locust: a thin shell over plan.users_at, ticked where the load is decided."""

from __future__ import annotations

from typing import Protocol

from locust import LoadTestShape

from loadtest.conductor.plan import Target


class Lead(Protocol):
    """Who decides the load; the hooks put it here when Locust has started."""

    def begin(self) -> bool:
        """Opens the run before its first tick; False when it cannot start and said why."""

    def target(self, elapsed_s: float) -> Target | None: ...


class ScenarioRamp(LoadTestShape):
    """The scenario's stages, or the users a person asked for (-u, or the form of the web page)."""

    abstract = True
    use_common_options = True
    lead: Lead | None = None
    _begun = False

    def tick(self) -> tuple[int, float] | None:
        if self.lead is None:
            return None
        if not self._begun:
            if not self.lead.begin():
                return None
            self._begun = True
            self.reset_time()
        target = self.lead.target(self.get_run_time())
        if target is None:
            self._begun = False  # the web page may start another run
            return None
        return target.users, target.spawn_rate_per_s
